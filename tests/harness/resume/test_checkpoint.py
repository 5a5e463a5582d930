"""Half a checkpoint is never picked up, and a full disk leaves the one before intact."""

import os
import signal

import pytest
import torch
from children import ended, in_child, killed_at

from quintet.common.errors import UserError
from quintet.harness.resume import checkpoint as ck


def test_save_keeps_the_previous_file(tmp_path):
    io, path = ck.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    io.save_checkpoint({"step": 2}, path)
    assert ck.load_checkpoint(path)["step"] == 2
    assert ck.load_checkpoint(tmp_path / "last.ckpt.previous")["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


def test_a_cut_off_file_is_passed_over(tmp_path, capsys):
    io, path = ck.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    io.save_checkpoint({"step": 2, "weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert ck.newest_checkpoint(tmp_path) == tmp_path / "last.ckpt.previous"
    assert "falling back" in capsys.readouterr().out


def test_a_partial_file_is_never_picked_up(tmp_path):
    torch.save({"step": 3}, tmp_path / "last.ckpt.partial")
    assert ck.newest_checkpoint(tmp_path) is None


def test_full_disk_keeps_the_one_before_and_says_so(tmp_path, monkeypatch):
    io, path = ck.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*intact"):
        io.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert ck.load_checkpoint(path)["step"] == 1
    assert not (tmp_path / "last.ckpt.partial").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_full_disk_for_real(tmp_path):
    (tmp_path / "last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="could not write checkpoint"):
        ck.AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.ckpt")


def test_a_pickled_object_is_refused(tmp_path):
    class Thing:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"thing": Thing()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not plain values"):
        ck.load_checkpoint(tmp_path / "last.ckpt")


class Waiting:
    """As much of a trainer as LastCheckpoint asks."""

    fast_dev_run, is_global_zero, global_step = False, True, 0

    def save_checkpoint(self, path, weights_only):
        self.global_step += 1
        ck.AtomicCheckpointIO().save_checkpoint({"step": self.global_step}, path)


def test_a_checkpoint_has_no_name_before_its_step_is_logged(tmp_path):
    last, trainer = ck.LastCheckpoint(str(tmp_path)), Waiting()
    last.save(trainer)
    assert ck.newest_checkpoint(tmp_path) is None  # a kill here resumes from the one before
    last.on_train_batch_start(trainer)
    last.save(trainer)
    assert ck.load_checkpoint(ck.newest_checkpoint(tmp_path))["step"] == 1
    last.on_train_batch_start(trainer)
    assert ck.load_checkpoint(ck.newest_checkpoint(tmp_path))["step"] == 2
    assert ck.load_checkpoint(tmp_path / "last.ckpt.previous")["step"] == 1
    last.save(trainer)
    last.on_train_start(trainer, None)  # another start: what waited is done again
    last.teardown(trainer, None, "fit")
    assert ck.load_checkpoint(ck.newest_checkpoint(tmp_path))["step"] == 2


def test_a_kill_between_writing_and_renaming(tmp_path):
    """The hard link is there already, the new name not yet."""
    ck.AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def dies():
        ck.Path.replace = killed_at(2, ck.Path.replace)  # the first one names the link
        ck.AtomicCheckpointIO().save_checkpoint({"step": 2}, tmp_path / "last.ckpt")

    assert ended(in_child(dies)) == -signal.SIGKILL
    assert (tmp_path / "last.ckpt.partial").exists() and (tmp_path / "last.ckpt.previous").exists()
    assert ck.load_checkpoint(ck.newest_checkpoint(tmp_path))["step"] == 1

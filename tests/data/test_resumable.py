import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from quintet.common.errors import UserError
from quintet.data.order import EpochSampler, EvalSampler
from quintet.data.resumable import ResumableDataModule

ITEMS, BATCH = 23, 4


def all_items(sampler):
    return [item for batch in sampler for item in batch]


def at(epoch, batch, **kwargs):
    return EpochSampler(ITEMS, BATCH, position=lambda: (epoch, batch), **kwargs)


def test_order_depends_on_seed_and_epoch_only():
    sampler = EpochSampler(ITEMS, BATCH, seed=3)
    first, again = list(sampler), list(sampler)
    assert first == again == list(at(0, 0, seed=3))
    assert sorted(item for batch in first for item in batch) == list(range(ITEMS))
    assert list(at(1, 0, seed=3)) != first
    assert list(EpochSampler(ITEMS, BATCH, seed=4)) != first


def test_a_pass_from_the_middle_is_the_rest_of_the_epoch_and_keeps_the_length():
    whole = list(at(5, 0))
    assert list(at(5, 2)) == whole[2:]
    assert len(at(5, 2)) == len(whole) == 6


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_take_the_same_number_of_batches_and_cover_the_data(world, drop_last):
    samplers = [EpochSampler(ITEMS, BATCH, rank=rank, world_size=world, drop_last=drop_last) for rank in range(world)]
    batches = [list(sampler) for sampler in samplers]
    assert len({len(b) for b in batches}) == 1
    assert all(len(b) == len(s) for b, s in zip(batches, samplers, strict=True))
    for step in zip(*batches, strict=True):
        assert len({len(batch) for batch in step}) == 1
    seen = [item for b in batches for batch in b for item in batch]
    if drop_last:
        assert len(seen) == len(set(seen))
    else:
        assert set(seen) == set(range(ITEMS)) and len(seen) - ITEMS < world


def test_unshuffled_order_and_no_duplicates_on_one_device():
    assert all_items(EpochSampler(ITEMS, BATCH, shuffle=False)) == list(range(ITEMS))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_shares_of_evaluation_are_even_whole_and_never_empty(items, size, world):
    parts = [list(EvalSampler(items, size, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    if items < world:  # nobody may be without: everybody takes all
        assert all(part == parts[0] for part in parts)
        parts = parts[:1]
    batches = [batch for part in parts for batch in part]
    assert [i for batch in batches for i in batch] == list(range(items)) and min(map(len, batches)) >= 1
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert max(map(len, batches)) <= size or max(map(len, batches)) == -(-items // len(batches))
    if world == 1:
        assert max(map(len, batches)) <= size


def test_bad_sizes_are_user_errors():
    with pytest.raises(UserError, match=r"data\.batch_size=0: give 1 or more"):
        EvalSampler(5, 0, key="data.batch_size")
    with pytest.raises(UserError, match="the split is empty"):
        EvalSampler(0, 3)
    with pytest.raises(UserError, match="empty"):
        EpochSampler(0, 1)
    with pytest.raises(UserError, match=r"batch_size=24.*larger than the 23"):
        EpochSampler(23, 24)
    with pytest.raises(UserError, match="batch_size=0"):
        EpochSampler(23, 0)


class Numbers(ResumableDataModule):
    def __init__(self, workers):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return self.resumable_loader(torch.arange(ITEMS), BATCH, seed=7, num_workers=self.workers)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(2))


class Recorder(pl.LightningModule):
    """Notes the batches it sees; can die at a step, as a killed job does."""

    def __init__(self, die_after=None):
        super().__init__()
        self.layer, self.seen, self.die_after = torch.nn.Linear(1, 1), [], die_after

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.die_after:
            raise KeyError("killed")
        self.seen.append((self.trainer.current_epoch, batch_idx, batch.tolist()))
        return self.layer(batch.float()[:, None]).mean() * 0

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", batch.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAtValidation(Callback):
    """A checkpoint from within the validation loop is another of Lightning's restart stages."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path / f"val{trainer.global_step}.ckpt")


def fit(tmp_path, module, workers=0, resume=None, callbacks=(), **trainer):
    options = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0,
        "log_every_n_steps": 1, "default_root_dir": tmp_path, "enable_checkpointing": resume is None,
    }  # fmt: skip
    saver = ModelCheckpoint(tmp_path, filename="s{step}", every_n_train_steps=1, save_top_k=-1,
                            auto_insert_metric_name=False)  # fmt: skip
    callbacks = [saver, *callbacks] if resume is None else list(callbacks)
    loop = pl.Trainer(
        **options | trainer,
        callbacks=callbacks,
    )
    loop.fit(module, Numbers(workers), ckpt_path=resume, weights_only=True if resume else None)
    return module.seen


@pytest.mark.filterwarnings("error:.*dataloader is not resumable.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_step_sees_exactly_the_remaining_batches(tmp_path, workers):
    whole = fit(tmp_path, Recorder(), callbacks=[SaveAtValidation(tmp_path)], val_check_interval=3)
    assert len(whole) == 18
    assert {tuple(x) for _, _, x in whole[:6]} != {tuple(x) for _, _, x in whole[6:12]}
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert {"s1.ckpt", "s6.ckpt", "s13.ckpt", "val3.ckpt", "val6.ckpt"} <= set(names)
    if workers:  # worker processes draw their indices early; starting them is slow, so fewer points
        names = ["s6.ckpt", "s8.ckpt", "val3.ckpt", "val12.ckpt"]
    for name in names:
        done = int(name.strip("svalckpt."))
        rest = fit(tmp_path, Recorder(), workers, tmp_path / name, val_check_interval=3)
        assert rest == whole[done:], name


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", Recorder())
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path, Recorder(die_after=9))
    assert fit(tmp_path, Recorder(), resume=tmp_path / "s9.ckpt") == whole[9:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [(4, 9, 15), (6, 8, 12)])
def test_data_order_survives_stops_by_max_steps(tmp_path, stops, workers):
    """Lightning ends the epoch when max_steps is reached; the data order goes on where it was."""
    (tmp_path / "whole").mkdir()
    whole = [x for _, _, x in fit(tmp_path / "whole", Recorder(), max_epochs=-1, max_steps=18)]
    seen, resume = [], None
    for stop in (*stops, 18):
        module, path = Recorder(), tmp_path / f"end{stop}.ckpt"

        class SaveAtEnd(Callback):
            def __init__(self, path):
                self.path = path

            def on_train_end(self, trainer, module):
                trainer.save_checkpoint(self.path)

        seen += fit(
            tmp_path, module, workers if resume else 0, resume, [SaveAtEnd(path)], max_epochs=-1, max_steps=stop
        )
        resume = path
    assert [x for _, _, x in seen] == whole


class Estimating(Recorder):
    """Asks for the run's length before its optimiser, as a schedule with an end does: then the loader is made."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 18
        return super().configure_optimizers()


def test_a_model_that_asks_for_the_runs_length_resumes_with_workers(tmp_path):
    """The workers' first indices are drawn before Lightning's counters are back from the checkpoint."""
    whole = fit(tmp_path, Estimating())
    for done in (2, 8):
        assert fit(tmp_path, Estimating(), workers=2, resume=tmp_path / f"s{done}.ckpt") == whole[done:]

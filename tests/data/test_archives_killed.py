"""An archive is whole or not there: processes that are killed while they unpack it, and several that do it at once."""

import os
import signal
import tarfile
import zipfile

import pytest
from children import ended, folders, in_child, killed_at

from quintet.data.archives import unpack
from quintet.data.store import build_once

FILES = {f"folder/{n}.txt": f"number {n}\n" * 1000 for n in range(6)}


@pytest.fixture(params=["zip", "tar.gz"])
def archive(request, tmp_path):
    path = tmp_path / f"things.{request.param}"
    source = tmp_path / "source"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as bundle:
            for name in FILES:
                bundle.write(source / name, name)
    else:
        with tarfile.open(path, "w:gz") as bundle:
            bundle.add(source / "folder", "folder")
    return path


def test_killed_while_unpacking(archive, tmp_path):
    into = tmp_path / "unpacked"

    def extract():
        zipfile.ZipFile._extract_member = killed_at(4, zipfile.ZipFile._extract_member)
        tarfile.TarFile.makefile = killed_at(4, tarfile.TarFile.makefile)
        unpack(archive, into)

    for _ in range(2):
        assert ended(in_child(extract)) == -signal.SIGKILL
        (left,) = folders(into)  # what the kill before has left is gone
        assert 0 < len(list((into / left / "folder").iterdir())) < len(FILES)
    found = unpack(archive, into)
    assert {str(p.relative_to(found)): p.read_text() for p in found.rglob("*.txt")} == FILES
    assert folders(into) == [found.name] and found.name != left


def test_several_unpack_at_the_same_time(archive, tmp_path):
    into, ready = tmp_path / "unpacked", os.pipe()

    def extract():
        os.close(ready[1])
        os.read(ready[0], 1)  # until the parent closes its end: all start together
        found = unpack(archive, into)
        assert {str(p.relative_to(found)): p.read_text() for p in found.rglob("*.txt")} == FILES

    pids = [in_child(extract) for _ in range(4)]
    os.close(ready[1])
    assert [ended(pid) for pid in pids] == [0] * 4
    assert len(folders(into)) == 1


def test_a_write_of_others_is_not_cleared_away(tmp_path):
    """Only what lies beside the target under its own name and mkdtemp's eight letters."""
    for name in ("thing.old", "things.abcdefgh", "thing.abcdefgh"):
        (tmp_path / name).mkdir()
    build_once(tmp_path / "thing", lambda folder: (folder / "whole").touch())
    assert folders(tmp_path) == ["thing", "thing.old", "things.abcdefgh"]

"""Archives: verified, unpacked inside their folder or refused with one line, never used half."""

import hashlib
import importlib.metadata
import io
import multiprocessing
import os
import shutil
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from fuzzing import few
from hypothesis import example, given
from hypothesis import strategies as st

from quintet.common.errors import UserError
from quintet.data import archives
from quintet.data.archives import find_root, unpack
from quintet.data.store import build_once

KINDS = ("zip", "tar", "tar.gz", "tar.bz2")


def pack(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of exactly these names, whatever they are."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, data in members.items():
                bundle.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return path
    with tarfile.open(path, {".gz": "w:gz", ".bz2": "w:bz2"}.get(path.suffix, "w")) as bundle:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_once_and_again_after_a_change(tmp_path, kind):
    members = {"a/b.txt": b"hello", "c.txt": b"", "a/ümläut.txt": b"x" * 5000}
    archive = pack(tmp_path / f"set.{kind}", members)
    first = find_root(tmp_path / "set", tmp_path / "cache", "missing")
    assert contents(first) == members and first.stat().st_mode & 0o777 == 0o755
    before = (first / "c.txt").stat().st_mtime_ns
    assert unpack(archive, tmp_path / "cache" / "unpacked") == first
    assert (first / "c.txt").stat().st_mtime_ns == before
    pack(archive, {"other.txt": b"new"})
    assert contents(find_root(archive, tmp_path / "cache", "missing")) == {"other.txt": b"new"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_without_tarfiles_filters_files_are_the_users_own(tmp_path, kind, monkeypatch):
    """As on Python 3.11.0 to 3.11.3: no bits that let another run it as its owner, nothing unreadable."""
    monkeypatch.setattr(archives, "SAFELY", {"set_attrs": False})
    monkeypatch.setattr(tarfile.TarFile, "extraction_filter", staticmethod(lambda member, path: member), raising=False)
    with tarfile.open(tmp_path / f"set.{kind}", "w:gz" if kind == "tar.gz" else "w") as bundle:
        for name, mode in (("program", 0o4755), ("secret", 0o000), ("open", 0o666)):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = 2, mode, 12345
            bundle.addfile(member, io.BytesIO(b"ab"))
    folder = unpack(tmp_path / f"set.{kind}", tmp_path / "cache")
    ours = (tmp_path / "ours").write_text("") or (tmp_path / "ours").stat()
    assert contents(folder) == {"program": b"ab", "secret": b"ab", "open": b"ab"}
    assert {(p.stat().st_mode, p.stat().st_uid) for p in folder.iterdir()} == {(ours.st_mode, ours.st_uid)}
    pack(tmp_path / f"bad.{kind}", {"../up.txt": b"x"})
    with pytest.raises(UserError, match="points outside its folder"):
        unpack(tmp_path / f"bad.{kind}", tmp_path / "cache")


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../up.txt", "a/../../up.txt", "/tmp/quintet_up.txt", "..\\up.txt", "C:\\up.txt", ".."]
)
def test_a_way_out_of_the_folder(tmp_path, kind, name):
    archive = pack(tmp_path / f"set.{kind}", {"good.txt": b"good", name: b"bad"})
    into = tmp_path / "deep" / "er" / "unpacked"
    with pytest.raises(UserError, match="refused") as caught:
        unpack(archive, into)
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("up.txt")) and not Path("/tmp/quintet_up.txt").exists()
    assert [p.suffix for p in into.iterdir()] == [".lock"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "change",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"type": tarfile.SYMTYPE, "linkname": "../../.."},
        {"type": tarfile.SYMTYPE, "linkname": "a/../../.."},
        {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "../../passwd"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.BLKTYPE},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_links_that_escape_and_devices(tmp_path, kind, change):
    archive = tmp_path / f"set.{kind}"
    with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as bundle:
        info = tarfile.TarInfo("x")
        for key, value in change.items():
            setattr(info, key, value)
        bundle.addfile(info)
    with pytest.raises(UserError, match=r"'x', which is .*: refused"):
        unpack(archive, tmp_path / "unpacked")


def test_a_link_inside_is_kept_and_a_zip_with_links_is_not(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as bundle:
        info = tarfile.TarInfo("data/x.txt")
        info.size = 2
        bundle.addfile(info, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("y.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "data/x.txt"
        bundle.addfile(link)
    assert (unpack(tmp_path / "set.tar", tmp_path / "unpacked") / "y.txt").read_bytes() == b"hi"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as bundle:
        link = zipfile.ZipInfo("x")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        bundle.writestr(link, "/etc")
    with pytest.raises(UserError, match="is a link: refused"):
        unpack(tmp_path / "set.zip", tmp_path / "unpacked")


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_anywhere(tmp_path, kind):
    """Also between two members and inside a header, where tarfile itself would quietly stop."""
    archive = pack(tmp_path / f"set.{kind}", {f"{n}.bin": os.urandom(700) for n in range(4)})
    whole = archive.read_bytes()
    end = 4 * 1536 if kind == "tar" else len(whole) - 9  # of the last member; after that come zeros, a checksum
    cuts = {0, 100, 511, 512, 513, 1000, 1536, 1537, 2048, 3072, end - 1, end}
    for cut in sorted(cut for cut in cuts if cut <= end):
        archive.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="download it again") as caught:
            unpack(archive, tmp_path / "unpacked")
        assert str(archive) in str(caught.value), cut


@pytest.mark.parametrize("kind", KINDS)
@few(15)
@given(data=st.data())
def test_flipped_bits(tmp_path, kind, data):
    """zip, gz and bz2 have checksums: the same files, or an error. A plain tar has them of its headers only."""
    members = {f"{n}/file.bin": bytes(range(256)) * 3 for n in range(3)}
    archive = pack(tmp_path / f"set.{kind}", members)
    raw = bytearray(archive.read_bytes())
    for _ in range(1 if kind == "tar" else data.draw(st.integers(1, 3))):  # two can cancel in the sum of a tar's header
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    archive.write_bytes(raw)
    shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
    try:
        found = contents(unpack(archive, tmp_path / "unpacked"))
    except UserError as error:
        assert str(archive) in str(error) and "\n" not in str(error)
        return
    if kind == "tar":
        assert {name: len(content) for name, content in found.items()} == dict.fromkeys(members, 768)
    else:
        assert found == members


NAMES = st.one_of(
    st.text(min_size=1, max_size=30),
    st.lists(st.sampled_from([*"ab/\\~ü", "..", ".", "", "C:", "x" * 300]), min_size=1, max_size=6)
    .map("/".join)
    .filter(bool),
)


@few(25)
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), kind=st.sampled_from(("zip", "tar")))
@example(names=["a", "a/b"], kind="tar")
@example(names=["a", "a/b"], kind="zip")
@example(names=["\0"], kind="zip")
def test_any_names(tmp_path, names, kind):
    """All files with their contents inside the folder, or one line that names the archive."""
    base = tmp_path / "deep" / "deeper"
    shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    base.mkdir(parents=True)
    members = {name: f"{number}".encode() for number, name in enumerate(names)}
    try:
        pack(base / f"set.{kind}", members)
    except (UnicodeEncodeError, ValueError):
        return  # not even an archive
    try:
        folder = unpack(base / f"set.{kind}", base / "unpacked")
    except UserError as error:
        assert f"set.{kind}" in str(error) and "\n" not in str(error)
    else:
        found = contents(folder)
        assert set(found.values()) <= set(members.values())
        kept = [name for name in names if not name.endswith(("/", "."))]
        assert len({str(Path(name)) for name in kept}) <= len(found) or kind == "zip"
    outside = {p.relative_to(base).parts[0] for p in (tmp_path / "deep").rglob("*") if p.is_file()}
    assert outside <= {f"set.{kind}", "unpacked"}


# --- verified ---------------------------------------------------------------------------------------------------------


def test_an_official_name_with_other_content(tmp_path):
    archive = pack(tmp_path / "VCTK-Corpus-0.92.zip", {"a.txt": b"a"})
    with pytest.raises(UserError, match=r"official file has f96258be.*sha256sum VCTK-Corpus-0.92.zip >> SHA256SUMS"):
        unpack(archive, tmp_path / "unpacked")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"# mine\n{digest}  VCTK-Corpus-0.92.zip\n")
    assert contents(unpack(archive, tmp_path / "unpacked")) == {"a.txt": b"a"}


def test_the_list_beside_an_archive(tmp_path):
    archive = pack(tmp_path / "mine.tar", {"a.txt": b"a"})
    assert not archives.verify(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    for line in (f"{digest}  mine.tar", f"{digest} *mine.tar", f"{digest.upper()}  ./mine.tar"):
        (tmp_path / "SHA256SUMS").write_text(line + "\n")
        assert archives.verify(archive)
    raw = bytearray(archive.read_bytes())
    raw[512] ^= 1  # the content: nothing in the tar itself tells
    archive.write_bytes(raw)
    with pytest.raises(UserError, match="SHA256SUMS in its folder lists"):
        unpack(archive, tmp_path / "unpacked")
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(UserError, match=r"SHA256SUMS, line 1"):
        unpack(archive, tmp_path / "unpacked")


def test_the_table_agrees_with_torchvision():
    installed = importlib.metadata.distribution("torchvision")  # read, for importing takes long
    for file, name in (("voc.py", "VOCtrainval_11-May-2012.tar"), ("sbd.py", "benchmark.tgz")):
        text = Path(installed.locate_file(f"torchvision/datasets/{file}")).read_text()
        assert archives.OFFICIAL[name].removeprefix("md5:") in text
    for value in archives.OFFICIAL.values():
        kind, _, digest = value.partition(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size


# --- killed -----------------------------------------------------------------------------------------------------------


def _slow(target: Path, started) -> None:
    def write(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        started.set()
        time.sleep(60)

    build_once(target, write)


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_slow, args=(tmp_path / "set-key", started))
    process.start()
    assert started.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "set-key").exists() and list(tmp_path.glob("set-key.*/half.txt"))
    (tmp_path / "set-key2.other").mkdir()  # another's: left alone
    build_once(tmp_path / "set-key", lambda folder: (folder / "whole.txt").write_text("whole"))
    assert contents(tmp_path / "set-key") == {"whole.txt": b"whole"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set-key", "set-key.lock", "set-key2.other"]

"""Unpack an archive once into the cache, after checking its checksum and the paths of its members."""

import errno
import hashlib
import logging
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from quintet.common.errors import UserError
from quintet.data.store import build_once

log = logging.getLogger(__name__)
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# The "data" filter of Python >= 3.11.4 drops owners and set-uid bits; older versions must not set attributes at all.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}
SUMS = "SHA256SUMS"
# Checksums as published by torchvision.datasets (voc, sbd) and torchaudio.datasets (librispeech, ljspeech, vctk).
OFFICIAL = {
    "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
    "benchmark.tgz": "md5:82b4d87ceb2ed10f6038a1cba92111cb",
    "dev-clean.tar.gz": "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other.tar.gz": "sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean.tar.gz": "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other.tar.gz": "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100.tar.gz": "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360.tar.gz": "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500.tar.gz": "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "LJSpeech-1.1.tar.bz2": "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    "VCTK-Corpus-0.92.zip": "sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
}


def is_archive(path: Path) -> bool:
    """True if the file name ends like an archive that `unpack` can read."""
    return path.name.lower().endswith(SUFFIXES)


def find_root(root: str | Path, cache_dir: str | Path, missing: str) -> Path:
    """Return the folder to read: `root`, or the archive `root` (or `root` + .zip, .tar.gz, ...) after unpacking it.

    Archives are unpacked into `cache_dir/unpacked`. Raises UserError(`missing`) if neither exists.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        return root
    for candidate in (root, *(root.with_name(root.name + suffix) for suffix in SUFFIXES)):
        if candidate.is_file():
            if not is_archive(candidate):
                raise UserError(f"{candidate} is neither a folder nor an archive ({', '.join(SUFFIXES)})")
            return unpack(candidate, Path(cache_dir) / "unpacked")
    raise UserError(missing)


def unpack(archive: Path, into: Path) -> Path:
    """Unpack into `into/<name>-<key>` and return that folder; the key changes when the archive changes.

    Other processes wait meanwhile, and after a kill the next call starts again. Raises UserError for a wrong checksum,
    a damaged archive, a full disk, and for members that are devices or whose path or link leaves the folder.
    """
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:10]
    return build_once(into / f"{archive.name.split('.')[0]}-{key}", lambda folder: _verify_and_extract(archive, folder))


def verify(path: Path) -> bool:
    """Compare a file with its line in `SHA256SUMS` in the same folder, or else with the checksum in OFFICIAL.

    Returns False if neither lists the file. Raises UserError if the checksums differ or the list cannot be parsed.
    """
    listed = _read_sums(path.with_name(SUMS)).get(path.name)
    expected = listed or OFFICIAL.get(path.name)
    if expected is None:
        return False
    kind, _, wanted = expected.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found == wanted:
        return True
    if listed:
        raise UserError(f"{path} has {kind} {found}, but {SUMS} in its folder lists {wanted}: download it again")
    raise UserError(
        f"{path} has {kind} {found}, but the official file has {wanted}: download it again; if the file is your own,"
        f" list it with (cd {path.parent} && sha256sum {path.name} >> {SUMS})"
    )


def _read_sums(path: Path) -> dict[str, str]:
    """Map each name in the output of `sha256sum` to `sha256:<digest>`; empty if there is no such file."""
    sums: dict[str, str] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        digest, _, name = line.strip().partition(" ")
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef") or not name.strip(" *"):
            raise UserError(f"{path}, line {number}: expected `<sha256>  <file>` as written by sha256sum")
        sums[name.lstrip(" *").removeprefix("./")] = f"sha256:{digest.lower()}"
    return sums


def _verify_and_extract(archive: Path, folder: Path) -> None:
    if not verify(archive):
        log.info("%s: no checksum is known; add one with sha256sum %s >> %s", archive, archive.name, SUMS)
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder)
        else:
            _extract_tar(archive, folder)
    except UserError:
        raise
    except Exception as error:  # the decoders of the standard library raise many types of errors on damaged bytes
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"cannot unpack {archive}: the disk of {folder.parent} is full; free space on it"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot unpack {archive}: {reason}; download it again") from error


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            _check_path(archive, member.orig_filename)
            if stat.S_ISLNK(member.external_attr >> 16):  # zipfile would write a file that contains the link's target
                _refuse(archive, member.filename, "is a link")
        bundle.extractall(folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, tarinfo=_StrictTarInfo) as bundle:
        for member in bundle:
            _check_path(archive, member.name)
            if member.issym() or member.islnk():
                # stricter than the "data" filter, which links with ".." could bypass (CVE-2025-4517)
                if member.linkname.startswith("/") or ".." in PurePosixPath(member.linkname).parts:
                    _refuse(archive, member.name, f"is a link to {member.linkname!r}, outside its folder")
            elif not (member.isreg() or member.isdir()):
                _refuse(archive, member.name, "is a device or another special file")
            bundle.extract(member, folder, **SAFELY)
        # .gz and .xz files end with a checksum, after the zeros that end the tar: read on, so that it is checked
        while bundle.fileobj is not None and bundle.fileobj.read(2**20):
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """Raises ReadError for a damaged header or a missing end, where tarfile would stop without an error."""

    @classmethod
    def fromtarfile(cls, bundle: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(bundle)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end; missing in typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {bundle.offset}") from error


def _check_path(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name:
        _refuse(archive, name, "is not a valid name")
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        _refuse(archive, name, "points outside its folder")


def _refuse(archive: Path, name: str, why: str) -> None:
    raise UserError(f"{archive} contains {name[:200]!r}, which {why}: refused")

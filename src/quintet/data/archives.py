"""Unpack an archive once, verified and safely, into the cache; a folder passes through."""

import errno
import hashlib
import logging
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from quintet.common.errors import UserError
from quintet.data.checksums import verify
from quintet.data.store import build_once

log = logging.getLogger(__name__)
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 20_000_000
# no owners, set-uid bits and the like; before Python 3.11.4 by leaving all attributes as the user's own files have them
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}
NOT_SAFE = getattr(tarfile, "FilterError", ())
FREE_GB, MAX_RATIO = 2, 200  # unpacked: no limit below so many GiB, beyond them so many times the archive's own size


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def find_root(root: str | Path, cache_dir: str | Path, missing: str) -> Path:
    """The folder to read: `root` itself, or `root` (or `root` + .zip, .tar.gz, ...) unpacked under `cache_dir`.

    Errors: UserError(`missing`) if there is nothing at `root`.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        return root
    for candidate in (root, *(root.with_name(root.name + suffix) for suffix in SUFFIXES)):
        if candidate.is_file():
            if not is_archive(candidate):
                raise UserError(f"{candidate} is neither a folder nor a {', '.join(SUFFIXES)} archive")
            return unpack(candidate, Path(cache_dir) / "unpacked")
    raise UserError(missing)


def unpack(archive: Path, into: Path) -> Path:
    """Unpack into `into/<name>-<key>`; other processes wait, a half-unpacked folder is never left under that name.

    Errors: UserError for a checksum that differs (see `verify`), a broken archive, and a member that is refused: a
    path or link out of the folder, a device, more bytes or files than an archive of that size can reasonably hold.
    """
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:10]
    return build_once(into / f"{archive.name.split('.')[0]}-{key}", lambda folder: _unpack(archive, folder))


def _unpack(archive: Path, folder: Path) -> None:
    if not verify(archive):
        log.info("%s: no checksum is known; sha256sum %s >> SHA256SUMS beside it notes this one", archive, archive.name)
    try:
        _extract(archive, folder)
    except UserError:
        raise
    except Exception as error:  # on damaged bytes the standard library's decoders raise whatever comes
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"cannot unpack {archive}: the disk of {folder.parent} is full; free space there"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot unpack {archive}: {reason}; download it again") from error


def _extract(archive: Path, folder: Path) -> None:
    limit = max(FREE_GB * 2**30, MAX_RATIO * archive.stat().st_size)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for member in _limited(bundle.infolist(), archive, limit):
                _check_path(archive, member.orig_filename)
                if stat.S_ISLNK(member.external_attr >> 16):
                    _refuse(archive, member.filename, "is a link")  # zipfile would write a file with its target in it
            needed, free = sum(m.file_size for m in bundle.infolist()), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive} needs {needed / 2**30:.1f} GiB, {folder.parent} has {free / 2**30:.1f}")
            bundle.extractall(folder)
        return
    with tarfile.open(archive, tarinfo=_Member) as bundle:
        for member in _limited(bundle, archive, limit):
            _check_tar_member(archive, member)
            try:
                bundle.extract(member, folder, **SAFELY)
            except NOT_SAFE as error:
                raise UserError(f"{archive}: {error}: refused") from error
        # the checksum of a .gz or .xz stands at its very end, behind the zeros that end the tar
        for _ in _limited(iter(lambda: bundle.fileobj.read(2**20), b""), archive, limit):
            pass


class _Member(tarfile.TarInfo):
    """A damaged header, or a file without an end, is an error: tarfile itself would quietly stop there."""

    @classmethod
    def fromtarfile(cls, bundle: tarfile.TarFile) -> tarfile.TarInfo:
        """Errors: ReadError."""
        try:
            return super().fromtarfile(bundle)
        except tarfile.EOFHeaderError:  # the regular end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {bundle.offset}") from error


def _limited(members: Iterable, archive: Path, limit: int) -> Iterator:
    """Members, or blocks, of an archive until they are too many, or too large in all. Errors: UserError."""
    total = 0
    for count, member in enumerate(members):
        total += _size(member)
        if total > limit or count >= MAX_MEMBERS:
            what = f"{total / 2**30:.1f} GiB" if total > limit else f"{count} files"
            raise UserError(
                f"{archive} would unpack to more than {what}, too much for {archive.stat().st_size / 2**20:.1f} MiB:"
                " refused; if you trust it, unpack it yourself and set data.root to the folder"
            )
        yield member


def _size(member: zipfile.ZipInfo | tarfile.TarInfo | bytes) -> int:
    if isinstance(member, bytes):
        return len(member)
    return member.file_size if isinstance(member, zipfile.ZipInfo) else max(member.size, 0)


def _check_path(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name:
        _refuse(archive, name, "is no name")
    drive = path.parts[0].endswith(":") if path.parts else False
    if path.is_absolute() or ".." in path.parts or drive:
        _refuse(archive, name, "lies outside its own folder")


def _check_tar_member(archive: Path, member: tarfile.TarInfo) -> None:
    _check_path(archive, member.name)
    if member.issym() or member.islnk():
        # stricter than tarfile's own filter, which was passed by in 2025 (CVE-2025-4517) with links that climb
        if member.linkname.startswith("/") or ".." in PurePosixPath(member.linkname).parts:
            _refuse(archive, member.name, f"is a link to {member.linkname!r}, up or out of its folder")
    elif not (member.isreg() or member.isdir()):
        _refuse(archive, member.name, "is a device or another special file")


def _refuse(archive: Path, name: str, why: str) -> None:
    raise UserError(f"{archive} holds {name[:200]!r}, which {why}: refused")

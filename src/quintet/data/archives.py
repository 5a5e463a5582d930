"""Unpack an official archive once, safely, into the cache; a folder passes through."""

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from quintet.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


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
    """Unpack into `into/<name>-<key>`; other processes wait, a half-unpacked folder is never left under that name."""
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:10]
    target = into / f"{archive.name.split('.')[0]}-{key}"
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=into))
        try:
            _extract(archive, temporary)
            temporary.chmod(0o755)
            temporary.replace(target)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot unpack {archive}: {reason}; download it again") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for name in bundle.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"{archive} holds {name!r}, outside its own folder: refused")
            bundle.extractall(folder)
        return
    with tarfile.open(archive) as bundle:
        try:
            bundle.extractall(folder, filter="data")  # refuses absolute paths, `..`, devices and links that escape
        except tarfile.FilterError as error:
            raise UserError(f"{archive}: {error}: refused") from error

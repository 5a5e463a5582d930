"""Checksums of archives: the official ones as torchvision and torchaudio state them, and the user's own SHA256SUMS."""

import hashlib
from pathlib import Path

from quintet.common.errors import UserError

OFFICIAL = {
    # torchvision.datasets.voc and .sbd
    "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
    "benchmark.tgz": "md5:82b4d87ceb2ed10f6038a1cba92111cb",
    # torchaudio.datasets.librispeech, .ljspeech and .vctk
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
LIST = "SHA256SUMS"


def verify(path: Path) -> bool:
    """Compare a file with the list `SHA256SUMS` beside it, else with the official checksum of its name.

    False when neither knows it. Errors: UserError when they differ, or the list cannot be read.
    """
    expected = noted(path.with_name(LIST)).get(path.name) or OFFICIAL.get(path.name)
    if expected is None:
        return False
    kind, _, wanted = expected.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found == wanted:
        return True
    if path.name in noted(path.with_name(LIST)):
        raise UserError(f"{path} has {kind} {found}, {LIST} beside it says {wanted}: download it again")
    raise UserError(
        f"{path} has {kind} {found}, the official file has {wanted}: download it again; or, if it is your own,"
        f" note it: (cd {path.parent} && sha256sum {path.name} >> {LIST})"
    )


def noted(path: Path) -> dict[str, str]:
    """Name -> `sha256:...` of a list as `sha256sum` writes it, empty without one. Errors: UserError naming the line."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        digest, _, name = line.strip().partition(" ")
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef") or not name.strip(" *"):
            raise UserError(f"{path}, line {number}: not `<sha256>  <file>` as sha256sum writes it")
        found[name.lstrip(" *").removeprefix("./")] = f"sha256:{digest.lower()}"
    return found

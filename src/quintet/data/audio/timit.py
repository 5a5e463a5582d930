"""TIMIT (LDC93S1): `TRAIN/DR1/FCJF0/SX127.WAV` (NIST sphere) and `SX127.PHN`; upper or lower case."""

from dataclasses import dataclass
from pathlib import Path

from quintet.data.audio.recording import Recording, Source, subfolder

# the 24 speakers of the core test set, and the 50 of the development set that the field uses (both in TEST)
_CORE_TEST = (
    "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0"
    " mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0"
)
_DEVELOPMENT = (
    "faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0 mgjf0 mglb0"
    " mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4"
    " fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1"
)
CORE_TEST, DEVELOPMENT = set(_CORE_TEST.split()), set(_DEVELOPMENT.split())


@dataclass
class TIMIT(Source):
    """use_sa: also read SA1 and SA2, which every speaker reads and which published results therefore leave out.

    Splits: TRAIN, the 50-speaker development set as "val", the 24-speaker core test set as "test".
    Speakers differ between splits, so they are not used as a condition.
    """

    use_sa: bool = False

    name = "TIMIT"
    put = "the TIMIT folder with TRAIN and TEST"
    sample_config = "timit_sample"

    def scan(self, root: Path) -> list[Recording]:
        found = []
        for part in ("TRAIN", "TEST"):
            folder = subfolder(root, part, part.lower())
            if folder is None:
                return []
            files = (path for path in folder.glob("*/*/*") if path.suffix.lower() == ".wav")
            found += [self._recording(path, part) for path in files if self.use_sa or path.stem[:2].upper() != "SA"]
        return found

    @staticmethod
    def _recording(path: Path, part: str) -> Recording:
        speaker = path.parent.name.lower()
        test = "test" if speaker in CORE_TEST else "val" if speaker in DEVELOPMENT else "unused"
        return Recording(f"{speaker}_{path.stem.lower()}", path, split="train" if part == "TRAIN" else test)

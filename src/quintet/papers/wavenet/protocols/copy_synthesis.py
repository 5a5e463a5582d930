"""Copy synthesis: audio from the local features of held-out utterances (section 2.5 without the text front end)."""

from pathlib import Path

import numpy as np

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.papers.wavenet import media

# Kubichek (1993): dB per unit of cepstral distance.
MCD_SCALE = 10 * np.sqrt(2) / np.log(10)


class CopySynthesis:
    """Generate `count` test utterances from their own local features; writes to `<run_dir>/copy_synthesis`."""

    def __init__(
        self, count: int = 4, seconds: float = 2.0, temperature: float = 1.0, seed: int = 0, backend: str = "auto"
    ) -> None:
        self.count, self.seconds, self.temperature = count, seconds, temperature
        self.seed, self.backend = seed, backend

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if "local" not in module.conditions or not module.data_info["local_channels"]:
            raise UserError("protocol=copy_synthesis needs a model with local conditioning, but this one has none")
        out_dir, rate, rows = Path(run_dir) / "copy_synthesis", module.data_info["sample_rate"], []
        for number, item in enumerate(media.spread(datamodule, "test", self.count)):
            wave_t, original_t = self._copy(module, item, number)
            titles = {f"Original, {item['id']}": original_t, f"Copy, {item['id']}": wave_t}
            media.to_wav(out_dir / f"{number}_copy.wav", wave_t, rate)
            media.to_wav(out_dir / f"{number}_original.wav", original_t, rate)
            media.plot_audio(out_dir / f"{number}.png", titles, rate)
            distances = log_spectral_distance(original_t, wave_t), mel_cepstral_distortion(original_t, wave_t, rate)
            rows.append((str(item["id"]), *distances))
        write_csv(
            out_dir / "distances.csv", ("utterance", "log_spectral_distance_db", "mel_cepstral_distortion_db"), rows
        )
        lsd, mcd = np.mean([row[1:] for row in rows], axis=0)
        return {"copy/log_spectral_distance_db": float(lsd), "copy/mel_cepstral_distortion_db": float(mcd)}

    def _copy(self, module, item: dict, number: int) -> tuple[np.ndarray, np.ndarray]:
        samples = min(round(self.seconds * module.data_info["sample_rate"]), len(item["pcm"]))
        samples = media.duration_in_samples(module, item, samples)
        given = media.utterance_arguments(module, item, samples)
        options = {"temperature": self.temperature, "seed": self.seed + number, "backend": self.backend}
        return media.synthesize(module, samples, **options, **given)[0], media.reference(item)[:samples]


def log_spectral_distance(reference_t: np.ndarray, other_t: np.ndarray, floor_db: float = -80.0) -> float:
    """Mean over frames of the root-mean-square difference of two power spectra in dB (Gray & Markel, 1976)."""
    reference_ft, other_ft = (np.maximum(media.log_spectrogram(w), floor_db) for w in (reference_t, other_t))
    return float(np.sqrt(((reference_ft - other_ft) ** 2).mean(0)).mean())


def mel_cepstral_distortion(reference_t: np.ndarray, other_t: np.ndarray, sample_rate: int, order: int = 24) -> float:
    """Mean over frames of the mel-cepstral distance in dB, without coefficient 0 (loudness), no time warping."""
    reference_ft, other_ft = (_mel_cepstrum(w, sample_rate, order) for w in (reference_t, other_t))
    return float(MCD_SCALE * np.sqrt(((reference_ft - other_ft) ** 2).sum(0)).mean())


def _mel_cepstrum(wave_t: np.ndarray, sample_rate: int, order: int) -> np.ndarray:
    """Cepstrum 1..order of the natural-log mel amplitude, (order, frames)."""
    import librosa
    from scipy.fft import dct

    padded = np.pad(wave_t, (0, max(0, 1024 - len(wave_t))))
    mel = librosa.feature.melspectrogram(y=padded, sr=sample_rate, n_fft=1024, hop_length=80, n_mels=80, power=1.0)
    # Scaled so that log S = c0 + sum c_m cos(m w): then the distortion is the rms difference in dB.
    return dct(np.log(np.maximum(mel, 1e-4)), axis=0, type=2)[1 : order + 1] / mel.shape[0]

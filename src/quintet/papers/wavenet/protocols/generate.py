"""Free, prompted or conditioned generation from a trained run (sections 2.5 and 3.1 to 3.3)."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.audio import mulaw
from quintet.papers.wavenet import media


class Generate:
    """Generate `count` waveforms of `seconds` as .wav files and plots in `<run_dir>/generate`."""

    def __init__(
        self,
        seconds: float = 2.0,
        speaker: str | None = None,
        tags: list[str] | None = None,
        temperature: float = 1.0,
        prompt: str | None = None,
        prompt_seconds: float | None = None,
        condition_on: str | None = None,
        resample: bool = False,
        count: int = 1,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        if seconds <= 0 or count < 1:
            raise UserError(f"protocol.seconds={seconds} and protocol.count={count}: both must be above 0")
        if temperature < 0:
            raise UserError(f"protocol.temperature={temperature}: use 0 (most likely class) or above")
        self.seconds, self.speaker, self.tags, self.count = seconds, speaker, list(tags or []), count
        self.temperature, self.seed, self.backend = temperature, seed, backend
        self.prompt, self.prompt_seconds = prompt, prompt_seconds
        self.condition_on, self.resample = condition_on, resample

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        rate = module.data_info["sample_rate"]
        prompt_bt = self._prompt(module)
        given, samples = self._conditions(module, datamodule, prompt_bt)
        start = time.perf_counter()
        waves_bt = media.synthesize(
            module,
            samples,
            prompt_bt=prompt_bt,
            batch_size=self.count,
            temperature=self.temperature,
            seed=self.seed,
            backend=self.backend,
            **given,
        )
        seconds = time.perf_counter() - start
        self._write(waves_bt, prompt_bt, module, Path(run_dir) / "generate")
        produced = samples * self.count
        return {
            "generate/samples_per_second": produced / seconds,
            "generate/real_time_factor": produced / seconds / rate,
            "generate/seconds_of_audio": produced / rate,
        }

    def _prompt(self, module) -> Tensor | None:
        """Mu-law classes (count, T) of the prompt, which the model continues; None without a prompt."""
        if self.prompt is None:
            return None
        wave_t = read_wav(self.prompt, module.data_info["sample_rate"], self.resample, "protocol.prompt")
        if self.prompt_seconds is not None:
            wave_t = wave_t[: round(self.prompt_seconds * module.data_info["sample_rate"])]
        classes_t = mulaw.encode(torch.from_numpy(wave_t), module.data_info["num_classes"])
        return classes_t.long().expand(self.count, -1)

    def _conditions(self, module, datamodule, prompt_bt: Tensor | None) -> tuple[dict[str, Tensor], int]:
        """The network's conditioning arguments, and how many samples to generate (features may end earlier)."""
        given, samples = {}, round(self.seconds * module.data_info["sample_rate"])
        speaker_b = media.speaker_argument(module, self.speaker, self.count)
        if speaker_b is not None:
            given["speaker_b"] = speaker_b
        if "tags" in module.conditions and module.data_info["tags"]:
            given["tags_bn"] = self._tags(module).expand(self.count, -1)
        elif self.tags:
            raise UserError(f"protocol.tags={self.tags}: this model has no tags; leave protocol.tags out")
        if "local" in module.conditions and module.data_info["local_channels"]:
            past = 0 if prompt_bt is None else prompt_bt.shape[1]
            local_ft = self._features(module, datamodule)
            samples = min(samples, local_ft.shape[1] * module.data_info["hop_length"] - past)
            if samples <= 0:
                raise UserError("protocol.condition_on is shorter than protocol.prompt: use a shorter prompt_seconds")
            given["local_bft"] = media.local_argument(module, local_ft, past + samples).expand(self.count, -1, -1)
        elif self.condition_on:
            raise UserError("protocol.condition_on is set, but this model has no local conditioning: leave it out")
        return given, samples

    def _tags(self, module) -> Tensor:
        known = module.data_info["tags"]
        unknown = [tag for tag in self.tags if tag not in known]
        if unknown:
            raise UserError(f"protocol.tags has {unknown[0]!r}, unknown to this model: choose of {', '.join(known)}")
        return torch.tensor([[float(tag in self.tags) for tag in known]])

    def _features(self, module, datamodule) -> np.ndarray:
        """Local features (F, frames) of `condition_on`, or of the first test utterance."""
        if self.condition_on is None:
            return np.asarray(datamodule.utterance("test", 0)["local"])
        return features_of(self.condition_on, module, datamodule, self.resample)

    def _write(self, waves_bt: np.ndarray, prompt_bt: Tensor | None, module, out_dir: Path) -> None:
        rate, parts = module.data_info["sample_rate"], [self.speaker, *self.tags]
        stem = "_".join(str(part) for part in parts if part) or "sample"
        for number, wave_t in enumerate(waves_bt):
            shown = {f"Generated, {stem}, temperature {self.temperature:g}": wave_t}
            if prompt_bt is not None:
                before_t = media.to_float(prompt_bt[number], module.data_info["num_classes"])
                shown = {"Prompt": before_t, **shown}
                media.to_wav(out_dir / f"{stem}_{number}_with_prompt.wav", np.concatenate([before_t, wave_t]), rate)
            media.to_wav(out_dir / f"{stem}_{number}.wav", wave_t, rate)
            media.plot_audio(out_dir / f"{stem}_{number}.png", shown, rate)


def read_wav(path: str, sample_rate: int, resample: bool, key: str) -> np.ndarray:
    """A mono float32 recording at the model's sample rate; UserError for another rate unless `resample` is set."""
    import soundfile

    if not Path(path).is_file():
        raise UserError(f"{key}={path}: no such file")
    try:
        wave_tc, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{key}={path} cannot be read as audio: {error}") from error
    wave_t = wave_tc.mean(1)
    if rate == sample_rate:
        return wave_t
    if not resample:
        raise UserError(f"{key}={path} has {rate} Hz, but the model {sample_rate} Hz: add protocol.resample=true")
    import librosa

    return librosa.resample(wave_t, orig_sr=rate, target_sr=sample_rate).astype(np.float32)


def features_of(path: str, module, datamodule, resample: bool) -> np.ndarray:
    """Local features (F, frames) of a recording, from the data module's extractor.

    Label files are looked up by utterance id for a file of the data set, otherwise by the name of the file.
    """
    rate, extractor = module.data_info["sample_rate"], datamodule.features
    wave_t = read_wav(path, rate, resample, "protocol.condition_on")
    pcm_t = np.clip(np.round(wave_t * 32768), -32768, 32767).astype(np.int16)
    recording = datamodule.recording_of(Path(path))
    label = extractor.label_files([recording], datamodule.cache_dir).get(recording.id)
    features_tf = extractor.extract(recording, pcm_t, rate, label)
    if features_tf is None:
        raise UserError(f"protocol.condition_on={path} has no usable labels: check data.features.root")
    return features_tf.T

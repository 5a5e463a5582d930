"""Generated audio: 16-bit .wav files, and plots of waveform and spectrogram."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.audio import mulaw


def synthesize(module, num_samples: int, **arguments) -> np.ndarray:
    """Generate with the module's network: float waveforms (B, num_samples) in [-1, 1]."""
    from quintet.papers.wavenet.generate import generate

    classes_bt = generate(module.network, num_samples, **arguments)
    assert isinstance(classes_bt, Tensor), "logits are not asked for"
    return to_float(classes_bt.cpu(), module.data_info["num_classes"])


def to_float(classes: Tensor, num_classes: int) -> np.ndarray:
    """Mu-law classes as float32 samples in [-1, 1]."""
    return np.asarray(mulaw.decode(classes, num_classes), dtype=np.float32)


def speaker_argument(module, name: str | None, count: int = 1) -> Tensor | None:
    """Speaker indices (count,) of a name (default: the first speaker); None for a model without speakers."""
    speakers = module.data_info["speakers"] if "speaker" in module.conditions else []
    if not speakers:
        if name is not None:
            raise UserError(f"protocol.speaker={name}: this model has no speakers; leave protocol.speaker out")
        return None
    name = speakers[0] if name is None else str(name)
    if name not in speakers:
        raise UserError(f"protocol.speaker={name} is unknown to this model: choose of {', '.join(speakers)}")
    return torch.full((count,), speakers.index(name))


def utterance_arguments(module, item: dict, num_samples: int) -> dict[str, Tensor]:
    """Conditioning arguments of the network for one utterance (`datamodule.utterance`), as a batch of one."""
    given = {}
    if "speaker" in module.conditions and module.data_info["speakers"]:
        given["speaker_b"] = torch.tensor([int(item["speaker"])])
    if "tags" in module.conditions and module.data_info["tags"]:
        given["tags_bn"] = torch.as_tensor(item["tags"], dtype=torch.float32)[None]
    if "local" in module.conditions and module.data_info["local_channels"]:
        given["local_bft"] = local_argument(module, item["local"], num_samples)
    return given


def local_argument(module, local_ft: np.ndarray, num_samples: int) -> Tensor:
    """Local features (1, F, frames) for exactly ceil(num_samples / hop) frames; missing ones repeat the last."""
    local = torch.as_tensor(np.asarray(local_ft), dtype=torch.float32)
    channels, frames = module.data_info["local_channels"], -(-num_samples // module.data_info["hop_length"])
    if local.shape[0] != channels:
        raise UserError(
            f"local features have {local.shape[0]} channels, but the model has {channels}: check data.features"
        )
    missing = max(0, frames - local.shape[1])
    return torch.cat([local[:, :frames], local[:, -1:].expand(-1, missing)], 1)[None]


def duration_in_samples(module, item: dict, num_samples: int) -> int:
    """`num_samples`, or less where local features end earlier."""
    if "local" not in module.conditions or not module.data_info["local_channels"]:
        return num_samples
    return min(num_samples, np.asarray(item["local"]).shape[1] * module.data_info["hop_length"])


def spread(datamodule, split: str, count: int, field: str = "speaker") -> list[dict]:
    """Up to `count` utterances of a split, different speakers first."""
    chosen, seen = [], set()
    total = datamodule.num_utterances(split)
    for index in range(total):
        item = datamodule.utterance(split, index)
        if item[field] not in seen:
            seen.add(item[field])
            chosen.append(index)
        if len(chosen) == count:
            break
    rest = [index for index in range(total) if index not in chosen]
    return [datamodule.utterance(split, index) for index in (chosen + rest)[:count]]


def to_wav(path: Path, waveform_t: np.ndarray, sample_rate: int) -> Path:
    """Write 16-bit PCM."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(waveform_t, -1.0, 1.0), sample_rate, subtype="PCM_16")
    return path


def plot_audio(path: Path, waveforms: dict[str, np.ndarray], sample_rate: int) -> Path:
    """One column per titled waveform: amplitude above, spectrogram in dB below, seconds along both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(waveforms), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(waveforms), squeeze=False, sharex="col", height_ratios=(1, 1.6))
    for column, (title, waveform_t) in enumerate(waveforms.items()):
        _plot_wave(axes[0, column], waveform_t, sample_rate, title)
        image = _plot_spectrogram(axes[1, column], waveform_t, sample_rate)
    figure.colorbar(image, ax=axes[1, :], label="level (dB re. full scale)", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _plot_wave(axis, waveform_t: np.ndarray, sample_rate: int, title: str) -> None:
    seconds = np.arange(len(waveform_t)) / sample_rate
    axis.plot(seconds, waveform_t, linewidth=0.5, color="#1f4e79")
    limit = max(0.05, 1.05 * float(np.abs(waveform_t).max(initial=0.0)))
    axis.set(title=title, ylabel="amplitude", ylim=(-limit, limit), xlim=(0, len(waveform_t) / sample_rate))
    axis.grid(alpha=0.25)


def _plot_spectrogram(axis, waveform_t: np.ndarray, sample_rate: int):
    power_db = log_spectrogram(waveform_t)
    extent = (0, len(waveform_t) / sample_rate, 0, sample_rate / 2000)
    image = axis.imshow(power_db, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-100, vmax=-10)
    axis.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return image


def log_spectrogram(waveform_t: np.ndarray, window: int = 512, hop: int = 128) -> np.ndarray:
    """Short-time power in dB re. a full-scale sine, (window / 2 + 1, frames), Hann window."""
    padded = np.pad(waveform_t, (0, max(0, window - len(waveform_t))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    amplitude = np.abs(np.fft.rfft(frames, axis=1)).T / (np.hanning(window).sum() / 2)
    return 20 * np.log10(np.maximum(amplitude, 1e-6))


def make_media(module, datamodule, out_dir: Path, seconds: float, count: int) -> list[Path]:
    """Generated audio beside a held-out utterance of the same conditioning, for `count` speakers or clips."""
    rate, paths = module.data_info["sample_rate"], []
    for number, item in enumerate(spread(datamodule, "val", count)):
        samples = duration_in_samples(module, item, round(seconds * rate))
        wave_t = synthesize(module, samples, seed=number, **utterance_arguments(module, item, samples))[0]
        reference_t = reference(item)[:samples]
        who = speaker_name(module, item)
        stem = re.sub(r"[^\w.-]", "_", f"{number}_{who}")
        titles = {f"Generated, {who}": wave_t, f"Held out, {item['id']}": reference_t}
        paths.append(to_wav(out_dir / f"{stem}_generated.wav", wave_t, rate))
        paths.append(to_wav(out_dir / f"{stem}_held_out.wav", reference_t, rate))
        paths.append(plot_audio(out_dir / f"{stem}.png", titles, rate))
    return paths


def reference(item: dict) -> np.ndarray:
    """A stored utterance as float samples in [-1, 1]."""
    return np.asarray(item["pcm"], dtype=np.float32) / 32768


def speaker_name(module, item: dict) -> str:
    """The speaker of an utterance, or its id where the data has no speakers."""
    speakers = module.data_info["speakers"]
    return speakers[int(item["speaker"])] if speakers else str(item["id"])

"""One example in a form to be shown to a user, as returned by `datamodule.preview(split, index)`."""

from dataclasses import dataclass

from numpy.typing import NDArray


@dataclass(frozen=True)
class Preview:
    """A short title, and the image, sound, text or table row of the example."""

    title: str  # "7", "dog/n02102_12.JPEG", "p225_003 1.5-2.0 s"
    text: str | None = None  # a caption, a sentence pair, the first words of an e-mail
    image: NDArray | None = None  # (H, W) or (H, W, 3) in [0, 1]
    audio: NDArray | None = None  # (n,) float in [-1, 1]
    sample_rate: int | None = None  # Hz, of `audio`
    table: dict[str, str] | None = None  # a row: column -> value
    group: str | None = None  # the larger unit it belongs to, e.g. the utterance of a window of audio
    label: str | None = None  # its class or speaker, which protocols compare with that of a query

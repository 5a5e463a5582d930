"""SBU (Ordonez et al. 2011): a million Flickr photographs and what their owners wrote; many have been taken down."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.division import drawn
from quintet.data.captions.layout import Place, read_json, read_lines
from quintet.data.captions.source import Caption, CaptionSource, Parts, Picture

URLS, CAPTIONS, JSON = ("SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt",
                        "sbu-captions-all.json")  # fmt: skip
ARCHIVES = ("SBUCaptionedPhotoDataset*", "sbu-captions*")


@dataclass
class SBU(CaptionSource):
    """The list of addresses and captions, and the downloaded images, named as their addresses end.

    SBUCaptionedPhotoDataset.tar.gz (two lists, line by line) or sbu-captions-all.tar.gz (JSON). images: the folder
    that they were downloaded to, null: beside the lists. val, test: images held out of the whole list by
    `division_seed`; the paper tests on 1,000.
    """

    images: str | None = None
    val: int = 1000
    test: int = 1000
    division_seed: int = 0

    name: ClassVar[str] = "SBU"
    put: ClassVar[str] = "SBUCaptionedPhotoDataset.tar.gz"

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        urls, texts, where = self._lists(place)
        folder = where[0].parent if self.images is None else Path(self.images).expanduser()
        if not folder.is_dir():
            raise UserError(f"data.source.images={self.images}: there is no such folder")
        pictures: dict[str, Picture] = {}
        for number, (url, text) in enumerate(zip(urls, texts, strict=True)):
            name = url.strip().rpartition("/")[2]
            if not name:
                raise UserError(f"{where[0]}, {where[1]} {number + 1}: no address of an image but {url[:60]!r}")
            caption = Caption(text.strip(), f"{where[0]}, {where[1]} {number + 1}")
            pictures.setdefault(name, Picture(name, folder / name, [])).captions.append(caption)
        return drawn([*pictures.values()], self.val, self.test, self.division_seed, "data.source.val, data.source.test")

    def _lists(self, place: Place) -> tuple[list[str], list[str], tuple[Path, str]]:
        """Addresses, captions, and what to call a line of theirs."""
        path = place.find((URLS, JSON), ARCHIVES)
        if path is None:
            raise UserError(f"{place.folder} has neither {URLS} nor {JSON}: put {self.put} there")
        if path.name == JSON:
            content = read_json(path, "image_urls", "captions")
            urls, texts, unit = content["image_urls"], content["captions"], "entry"
        else:
            if not path.with_name(CAPTIONS).is_file():
                raise UserError(f"{path.with_name(CAPTIONS)} is missing beside {URLS}")
            urls, texts, unit = read_lines(path), read_lines(path.with_name(CAPTIONS)), "line"
        if len(urls) != len(texts):
            raise UserError(f"{path}: {len(urls)} addresses but {len(texts)} captions: download it again")
        return urls, texts, (path, unit)

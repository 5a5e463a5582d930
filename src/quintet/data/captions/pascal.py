"""Pascal sentences (Rashtchian et al. 2010): 1,000 images of VOC 2008 with five captions each, to test on only."""

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.layout import read_lines
from quintet.data.captions.source import Caption, CaptionSource, Parts, Picture
from quintet.data.examples.pictures import SUFFIXES

TEST_ONLY = "Pascal sentences is a test set, see protocol=transfer"


class Page(HTMLParser):
    """The table of the data set's page: a cell with an image, then a cell for each of its captions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self._image, self._text = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self._flush()  # cells often lack their ends
        if tag == "img":
            self._image, self._text = dict(attrs).get("src") or "", ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "tr", "table"):
            self._flush()

    def handle_data(self, data: str) -> None:
        self._text += data

    def _flush(self) -> None:
        if self._image and self._text.strip():
            self.found.setdefault(self._image, []).append(" ".join(self._text.split()))
        self._text = ""


@dataclass
class PascalSentences(CaptionSource):
    """The mirrored page (index.html beside the folders of its 20 classes), or one text file of sentences an image.

    Those are `sentence/<class>/<image>.txt` beside `dataset/<class>/<image>.jpg`, as download scripts make them.
    """

    name: ClassVar[str] = "Pascal sentences"
    put: ClassVar[str] = "index.html of vision.cs.uiuc.edu/pascal-sentences and its folders of images"

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        page, sentences = place.find(("index.html",)), place.find(("sentence",))
        if page is not None:
            pictures = self._from_page(page)
        elif sentences is not None:
            pictures = self._from_files(sentences)
        else:
            raise UserError(f"{place.folder} has neither index.html nor a folder `sentence`: put {self.put} there")
        return Parts({"test": pictures}, {"train": TEST_ONLY, "val": TEST_ONLY})

    def _from_page(self, path: Path) -> list[Picture]:
        page = Page()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        if not page.found:
            raise UserError(f"{path} has no table of images and sentences: is it another page?")
        return [
            Picture(source, path.parent / source, [Caption(text, f"{path}, image {source}") for text in texts])
            for source, texts in page.found.items()
        ]

    def _from_files(self, folder: Path) -> list[Picture]:
        images = {path.relative_to(folder.parent / "dataset").with_suffix(""): path
                  for path in (folder.parent / "dataset").rglob("*") if path.suffix.lower() in SUFFIXES}  # fmt: skip
        pictures = []
        for path in sorted(folder.rglob("*.txt")):
            stem = path.relative_to(folder).with_suffix("")
            lines = [Caption(line.strip(), f"{path}, line {k}") for k, line in enumerate(read_lines(path), 1)]
            image = images.get(stem, folder.parent / "dataset" / f"{stem}.jpg")
            pictures.append(Picture(str(stem), image, [caption for caption in lines if caption.text]))
        return pictures

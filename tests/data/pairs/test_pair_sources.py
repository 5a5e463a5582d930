"""Parallel corpora in their official layouts, and what each kind of broken file is answered with."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from quintet.common.errors import UserError
from quintet.data.pairs.hub import HubPairs
from quintet.data.pairs.multi30k import Multi30k
from quintet.data.pairs.symbols import Symbols
from quintet.data.pairs.wmt14 import WMT14
from quintet.data.samples.pairs import SamplePairs, write_pairs_sample


@pytest.fixture
def corpus(tmp_path):
    write_pairs_sample(tmp_path / "multi30k", 30, 5, 7)
    return tmp_path / "multi30k"


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def test_the_sample_is_read_as_multi30k_and_every_line_keeps_its_twin(corpus, tmp_path):
    splits = Multi30k(str(corpus)).splits(tmp_path / "cache")
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "val": 5, "test": 7}
    for language, side in (("en", "source"), ("de", "target")):
        lines = gzip.decompress((corpus / "raw" / f"test_2016_flickr.{language}.gz").read_bytes()).decode().splitlines()
        assert list(splits["test"][side]) == lines
    swapped = Multi30k(str(corpus), "de", "en").splits(tmp_path / "cache")
    assert list(swapped["val"]["source"]) == list(splits["val"]["target"])
    sample = SamplePairs(str(tmp_path / "s"), num_train=30, num_val=5, num_test=7).splits(tmp_path / "cache")
    assert list(sample["train"]["target"]) == list(splits["train"]["target"])


def test_a_truncated_gz_is_named(corpus, tmp_path):
    damage(corpus / "raw" / "train.de.gz", lambda data: data[: len(data) // 2])
    with pytest.raises(UserError, match=r"train\.de\.gz cannot be read after line \d+.*download it again"):
        Multi30k(str(corpus)).splits(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("pairs/text-*/train.arrow"))


def test_a_file_that_is_no_gzip_is_named(corpus, tmp_path):
    (corpus / "raw" / "val.en.gz").write_text("hello")
    with pytest.raises(UserError, match=r"val\.en\.gz cannot be read after line 0"):
        Multi30k(str(corpus)).splits(tmp_path / "cache")


def test_files_of_unequal_length_are_both_named(corpus, tmp_path):
    damage(corpus / "raw" / "val.de.gz", lambda data: gzip.compress(gzip.decompress(data) + b"Noch ein Satz.\n"))
    with pytest.raises(UserError, match=r"val\.en\.gz ends after line 5, .*val\.de\.gz goes on"):
        Multi30k(str(corpus)).splits(tmp_path / "cache")


def test_latin1_is_refused_with_its_line(corpus, tmp_path):
    damage(corpus / "raw" / "val.de.gz", lambda data: gzip.compress("eins\nzwei\nfünf\n".encode("latin-1")))
    with pytest.raises(UserError, match=r"val\.de\.gz, line 3: not UTF-8"):
        Multi30k(str(corpus)).splits(tmp_path / "cache")


def test_missing_things_are_named(corpus, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"no Multi30k at data\.root=/nowhere.*data=pairs_sample"):
        Multi30k("/nowhere").splits(cache)
    with pytest.raises(UserError, match=r"data\.source\.target_language=fr: .* has de, en"):
        Multi30k(str(corpus), target_language="fr").splits(cache)
    with pytest.raises(UserError, match=r"test_2017_flickr\.en\.gz is missing"):
        Multi30k(str(corpus), test="test_2017_flickr").splits(cache)


def test_odd_line_ends_do_not_shift_the_twins(corpus, tmp_path):
    text = "a\u2028b\r\nc\x85d\n\ne\n"  # str.splitlines would make six lines of these four
    for language in ("en", "de"):
        (corpus / "raw" / f"val.{language}.gz").write_bytes(gzip.compress(text.encode()))
    found = list(Multi30k(str(corpus)).splits(tmp_path / "cache")["val"]["source"])
    assert found == ["a\u2028b", "c\x85d", "", "e"]


def write_wmt(root, sgml=True):
    for folder in ("training", "dev", "test-full"):
        (root / folder).mkdir(parents=True)
    for name in ("europarl-v7", "news-commentary-v9"):
        for language in ("de", "en"):
            (root / "training" / f"{name}.de-en.{language}").write_text(f"{name} {language} 1\n{name} {language} 2\n")
    for language in ("de", "en"):
        (root / "dev" / f"newstest2013.{language}").write_text(f"news {language}\n")
    for side, language in (("src", "en"), ("ref", "de")):
        lines = [f'<seg id="{n}">Q&amp;A {language}  {n}</seg>' for n in (1, 2, 3)]
        body = "\n".join(["<refset>", *lines, "</refset>"])
        (root / "test-full" / f"newstest2014-deen-{side}.{language}.sgm").write_text(body if sgml else "no segments")


def test_wmt14_reads_bitexts_in_order_and_segments_of_sgml(tmp_path):
    write_wmt(tmp_path / "wmt")
    source = WMT14(str(tmp_path / "wmt"), corpora=("europarl-v7", "news-commentary-v9"))
    splits = source.splits(tmp_path / "cache")
    assert list(splits["train"]["source"]) == [f"{n} en {i}" for n in source.corpora for i in (1, 2)]
    assert splits["val"][0] == {"source": "news en", "target": "news de"}
    assert list(splits["test"]["target"]) == ["Q&A de 1", "Q&A de 2", "Q&A de 3"]


def test_wmt14_names_what_it_lacks(tmp_path):
    write_wmt(tmp_path / "wmt")
    with pytest.raises(UserError, match=r"commoncrawl\.de-en\.en"):
        WMT14(str(tmp_path / "wmt")).splits(tmp_path / "cache")
    write_wmt(tmp_path / "empty", sgml=False)
    with pytest.raises(UserError, match=r"newstest2014-deen-src\.en\.sgm has no <seg>"):
        WMT14(str(tmp_path / "empty"), corpora=("europarl-v7",)).splits(tmp_path / "cache")


def test_hub_layout_from_a_local_copy(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, count in (("train", 4), ("validation", 2), ("test", 3)):
        rows = [{"translation": {"de": f"{name} Satz {i}", "en": f" {name} line {i}"}} for i in range(count)]
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    splits = HubPairs(str(folder)).splits(tmp_path / "cache")
    assert splits["test"][2] == {"source": "test line 2", "target": "test Satz 2"}
    with pytest.raises(UserError, match="has no language fr, only de, en"):
        HubPairs(str(folder), target_language="fr").splits(tmp_path / "cache")


def test_symbols_follow_one_function_and_the_power_law(tmp_path):
    source = Symbols(str(tmp_path), largest=500, num_train=3000, num_val=40, num_test=300)
    splits = source.splits(tmp_path / "cache")
    image = json.loads(next(tmp_path.glob("*/function.json")).read_text())
    seen = Counter()
    for name, split in splits.items():
        for row in split:
            inputs, outputs = (list(map(int, row[side].split())) for side in ("source", "target"))
            assert outputs == [image[s - 2] for s in inputs] and 4 <= len(inputs) <= 8
            assert all(2 <= s <= 500 for s in inputs + outputs)
            if name == "train":
                seen.update(inputs)
    assert len(set(image)) < len(image)  # a function, not a permutation
    counts = np.array(sorted(seen.values(), reverse=True))
    harmonic = (1 / np.arange(1, 500)).sum()
    for rank in (1, 2, 4, 8):
        assert counts[rank - 1] / counts.sum() == pytest.approx(1 / rank / harmonic, rel=0.12)
    common = {s for s, _ in seen.most_common(5)}
    assert common & set(map(int, " ".join(splits["test"]["source"]).split())) == common  # the same ranks in the test


def test_symbols_are_the_same_every_time_and_other_with_another_seed(tmp_path):
    def rows(name, seed):
        source = Symbols(str(tmp_path / name), num_train=5, num_val=5, num_test=5, seed=seed)
        return list(source.splits(tmp_path)["train"])

    assert rows("a", 0) == rows("b", 0) != rows("c", 1)
    with pytest.raises(UserError, match=r"min_length=9, max_length=8"):
        Symbols(str(tmp_path), min_length=9)

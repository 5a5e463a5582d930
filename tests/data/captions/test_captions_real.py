"""The same code on real photographs in Flickr8k's archives; skipped where they are not there."""

from collections import Counter

import numpy as np
import pytest
import torch
from commands import REPOSITORY

from quintet.common.errors import UserError
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.flickr8k import Flickr8k
from quintet.data.special_ids import UNKNOWN

FOLDER = REPOSITORY.parent / "shared" / "data" / "flickr8k"


@pytest.fixture(scope="module")
def flickr(tmp_path_factory):
    if not (FOLDER / "Flickr8k_text.zip").is_file():
        pytest.skip(f"no real photographs: {FOLDER}/Flickr8k_text.zip is not there")
    module = CaptionDataModule(Flickr8k(str(FOLDER)), str(tmp_path_factory.mktemp("flickr")), batch_size=64)
    module.setup()
    return module


def test_5997_training_and_1000_validation_images(flickr):
    assert [flickr.num_images(split) for split in ("train", "val")] == [5997, 1000]
    assert [flickr.num_examples(split) for split in ("train", "val")] == [29985, 5000]
    with pytest.raises(UserError, match=r"has no test split: there is no Flickr_8k\.testImages\.txt"):
        flickr.test_dataloader()
    assert set(flickr.image_ids("train")).isdisjoint(flickr.image_ids("val"))
    assert all(len(references) == 5 for references in flickr.references("val", range(1000)))


def test_the_vocabulary_counts_training_words_only(flickr):
    """Counted again by splitting at spaces, which is what the tokeniser does to these captions but for punctuation."""
    words = flickr.data_info["vocabulary"]
    train, val = (
        Counter(word for text in flickr.captions(split) for word in text.lower().split() if word.isalpha())
        for split in ("train", "val")
    )
    known = {word for word in words if word.isalpha()}
    assert known <= {word for word, count in train.items() if count >= 4} and 2400 < len(words) < 2700
    assert len({word for word, count in train.items() if count >= 6} - known) == 0
    leaking = [word for word, count in val.items() if count >= 5 and train[word] < 4]
    assert leaking and not set(leaking) & known
    batch = flickr.image_batch("val", range(200))
    assert 0 < (batch.words == UNKNOWN).float().sum() / batch.lengths.sum() < 0.05


def test_batches_of_real_captions_have_little_padding(flickr):
    dataset = flickr.dataset("train", training=True)
    padding = total = count = 0
    for rows in flickr.train_dataloader().batch_sampler:
        lengths = dataset.lengths()[np.array(rows) % len(dataset)] + 2
        padding, total, count = padding + int((lengths.max() - lengths).sum()), total + lengths.sum(), count + len(rows)
    assert count == 29985 and padding / total < 0.04


@pytest.mark.slow
def test_a_real_image_both_ways(flickr):
    batch = next(iter(flickr.train_dataloader()))
    assert batch.images.shape[1:] == (3, 299, 299) and 0 <= batch.images.min() < 0.05 < 0.95 < batch.images.max() <= 1
    shown = flickr.images("val", [0])
    assert torch.equal(shown, flickr.image_batch("val", [0]).images) and shown.std() > 0.1
    assert flickr.picture("val", 0).shape == (224, 224, 3)
    preview = flickr.preview("val", 3)
    assert preview.title == f"{flickr.image_ids('val')[0]}#3" and preview.text in flickr.references("val", [0])[0]

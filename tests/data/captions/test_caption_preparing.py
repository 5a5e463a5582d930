"""From pictures to features: a kill on the way leaves nothing that is used, and two processes prepare one data set."""

import signal

import numpy as np
from caption_files import write_flickr8k
from children import ended, folders, in_child, killed_at

from quintet.data.captions import features
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.flickr8k import Flickr8k

ENCODER = {"name": "shufflenet_v2_x0_5", "weights": None, "image_size": 32}
SMALL = {"batch_size": 2, "min_count": 1, "resize_size": 10, "crop_size": 8, "eval_batch_size": 2}


def prepare(root, cache):
    """The whole way of a data set: unpack, look at every picture, compute features; the features of its splits."""
    made = CaptionDataModule(Flickr8k(str(root)), str(cache), features=ENCODER, **SMALL)
    made.prepare_data()
    made.setup()
    rows = {split: np.arange(made.num_images(split)) for split in ("train", "val")}
    return {split: np.array(made._features[split].gather(rows_n)) for split, rows_n in rows.items()}


def test_killed_while_features_are_computed_and_prepared_by_two_at_once(tmp_path):
    write_flickr8k(tmp_path / "flickr8k", 6, 2, 2)
    root, cache = tmp_path / "flickr8k", tmp_path / "cache"

    def dies():
        features.BATCH = 2
        features.Encoder.forward = killed_at(2, features.Encoder.forward)
        prepare(root, cache)

    assert ended(in_child(dies)) == -signal.SIGKILL
    (left,) = folders(cache / "features")
    half = np.load(cache / "features" / left / "features.npy", mmap_mode="r")
    assert half.shape[0] == 6 and not half[2:].any()  # of the right size, and wrong
    pids = [in_child(lambda: prepare(root, cache)) for _ in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    assert left not in folders(cache / "features") and all("." not in name for name in folders(cache / "features"))
    assert ended(in_child(lambda: prepare(root, tmp_path / "other"))) == 0  # on one thread, like the two: bit for bit
    again, fresh = prepare(root, cache), prepare(root, tmp_path / "other")
    assert all(again[split].any(1).all() and np.array_equal(again[split], fresh[split]) for split in fresh)

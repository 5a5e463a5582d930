"""One of the two processes of test_segmentation_metric.py: `python iou_ranks.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
from iou_pictures import pictures
from torch import distributed

from quintet.metrics.segmentation import MeanIoU


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = MeanIoU(6, chosen=["1", "4"])
    made = pictures(7)
    found = []
    for shares in ((made[:5], made[5:]), ((), made)):  # unequal ones, and nothing at all for rank 0
        for predicted, labels in shares[rank]:
            metric.update(predicted[None], labels[None])
        found.append(metric.compute())
        metric.reset()
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""One of the two processes of test_caption_metrics.py: `python caption_ranks.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
from caption_texts import HYPOTHESES, REFERENCES, share
from torch import distributed

from quintet.metrics.captions import CaptionMetrics


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric, found = CaptionMetrics(), []
    everything = (HYPOTHESES, REFERENCES, list(range(len(HYPOTHESES))))
    for shares in ((share(0), share(1)), (([], [], []), everything)):  # unequal ones, and nothing at all for rank 0
        hypotheses, references, ids = shares[rank]
        metric.update(hypotheses, references, torch.tensor(ids))
        found.append(metric.compute())
        metric.reset()
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

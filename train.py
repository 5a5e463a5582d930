"""Train one of the models on a compatible data set: `python train.py model=wavenet data=vctk`."""

import sys

import hydra
from omegaconf import DictConfig

from quintet.harness import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def train(cfg: DictConfig) -> float | None:
    """One training run; returns `optimized_metric` for Hydra's sweepers."""
    return cli.train_job(cfg)


if __name__ == "__main__":
    sys.exit(cli.train_main(train))

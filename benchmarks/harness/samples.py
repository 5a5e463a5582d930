"""The five papers' sample experiments as the harness's benchmarks run them: no download, one CPU thread, seconds.

Legend: an experiment, and the overrides that make its training a plain loop over batches.
"""

QUIET = ["trainer=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]
SAMPLES = {
    "wavenet/sample": [],
    "rare_events/sample": [],
    # its own L-BFGS takes all examples in a step; what is asked here is what a step costs
    "influence/sample": ["model.optimizer.name=adam", "model.optimizer.lr=0.01", "data.batch_size=100"],
    "deeplab/sample": ["model.optimizer.total_steps=1000", "data.num_workers=0"],
    "show_and_tell/sample": ["data.num_workers=0"],
}


def overrides_of(experiment: str, folder: str) -> list[str]:
    """What train.py would be given, with logs and prepared data under `folder`."""
    return [
        f"experiment={experiment}",
        *QUIET,
        *SAMPLES[experiment],
        f"paths.log_dir={folder}/logs",
        f"paths.cache_dir={folder}/cache",
    ]

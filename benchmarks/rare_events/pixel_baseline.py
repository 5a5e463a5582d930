"""Nearest neighbour on raw pixels, both few-shot protocols: what a network has to beat. No training, no run needed.

    python -m benchmarks.rare_events.pixel_baseline data=omniglot data.root=... --publish rare_events_pixel_baseline

Cosine between 28 x 28 images with white background. The published numbers are those of Vinyals et al. 2016, which the
paper's table repeats; they split the characters otherwise (1,200 to train on): their test classes are not these.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.common import build_data, compose_training, data_name, one_line_errors, parser, report, row

PUBLISHED = {(5, 1): 0.417, (5, 5): 0.632, (20, 1): 0.267, (20, 5): 0.426}


def baseline(datamodule, folder: Path, episodes: int) -> list[dict]:
    """Result rows of both protocols."""
    from quintet.papers.rare_events.protocols.few_shot_streaming import FewShotStreaming
    from quintet.papers.rare_events.protocols.few_shot_strict import FewShotStrict

    rows = []
    for protocol in (FewShotStrict, FewShotStreaming):
        made = protocol(episodes=episodes, embedding="pixels")
        metrics = made(None, datamodule, folder)
        for (way, shot), paper in PUBLISHED.items():
            name = f"{made.name}_pixels/{way}way_{shot}shot"
            note = f"± {metrics[f'{name}_ci95']:.4f} (95% over {episodes} episodes)"
            # the published cells are of the strict protocol
            rows.append(row(name, metrics[name], "", note) | ({"paper": paper} if protocol is FewShotStrict else {}))
    return rows


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "rare_events_pixel_baseline")
    options.add_argument("--episodes", type=int, default=2000)
    args = options.parse_args()
    start = time.perf_counter()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(["model=rare_events", *args.overrides], Path(folder))
        rows = baseline(build_data(cfg, "test"), Path(folder), args.episodes)
    report(
        args.publish,
        rows,
        title="Nearest neighbour on raw pixels",
        protocol="strict (k examples of each class, then 1 question each) and streaming; test classes, unrotated",
        data=data_name(cfg),
        subset=args.subset,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()

"""Are our caption scores coco-caption's, and how long do they take? Against its Java tools, on real captions.

    python -m venv <folder> && <folder>/bin/pip install pycocoevalcap==1.2       (and a Java runtime)
    python -m benchmarks.show_and_tell.caption_metrics data=flickr8k data.root=<flickr8k> --peers <folder>

Three sets of captions for the images of a split: each image's first caption against its others; another image's
caption; captions that say little, nothing, or one word over and over.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS, build_data, compose_training, one_line_errors, parser, print_table, row
from quintet.common.errors import UserError

REPEATS = 3
POOR = ["", ".", "a", "a a a a a a a a", "A dog", "xyzzy", "the man the man the man", "a man in a red shirt"]


def main() -> None:
    options = parser(__doc__.splitlines()[0], "show_and_tell_metrics_parity")
    options.add_argument("--peers", required=True, help="environment with pycocoevalcap")
    options.add_argument("--split", default="val")
    args = options.parse_args()
    start = time.perf_counter()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(["model=show_and_tell", *args.overrides], Path(folder))
        datamodule = build_data(cfg)
        count = datamodule.num_images(args.split)
        sets = caption_sets(datamodule.references(args.split, range(count)))
        rows = compared(sets, java(sets, Path(args.peers), Path(folder)))
    title = f"Caption metrics against the Java coco-caption, {count} images"
    print_table(title, rows)
    if args.publish:
        publish(args, cfg, title, rows, time.perf_counter() - start)


def caption_sets(references: Sequence[list[str]]) -> dict[str, dict]:
    """Captions and references by name, as the Java side reads them."""
    first, others = [texts[0] for texts in references], [texts[1:] for texts in references]
    return {
        "human": {"hypotheses": first, "references": others},
        "another image's": {"hypotheses": [*first[1:], first[0]], "references": references},
        "poor": {"hypotheses": [POOR[i % len(POOR)] for i in range(len(first))], "references": references},
    }


def java(sets: dict[str, dict], peers: Path, folder: Path) -> dict[str, dict]:
    """The Java tools' scores, run in their own environment."""
    script = Path(__file__).with_name("caption_metrics_java.py")
    (folder / "captions.json").write_text(json.dumps(sets))
    if not (peers / "bin/python").is_file():
        raise UserError(f"--peers {peers}: no environment with bin/python there; {__doc__.splitlines()[2].strip()}")
    command = [str(peers / "bin/python"), str(script), str(folder / "captions.json"), str(folder / "scores.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: the Java side failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "scores.json").read_text())


def compared(sets: dict[str, dict], theirs: dict[str, dict]) -> list[dict]:
    from quintet.metrics.captions.metrics import scores
    from quintet.metrics.captions.tokenizer import tokenize

    rows = []
    for name, made in sets.items():
        ours, java_values = scores(made["hypotheses"], made["references"]), theirs[name]["values"]
        pairs = zip(made["hypotheses"], made["references"], theirs[name]["tokens"], strict=True)
        unlike = sum(tokenize(t) != words for h, r, of in pairs for t, words in zip([h, *r], of, strict=True))
        rows.append(row(f"{name}: captions with other words than Java's", unlike, "captions"))
        for metric, value in ours.items():
            note = f"Java {java_values[metric]:.10g}, difference {abs(value - java_values[metric]):.1e}"
            if metric.startswith("meteor"):
                wide = java_values["meteor_exact_stem_wide"]
                note += f"; with a beam of 5000 {wide:.10g}, difference {abs(value - wide):.1e}"
                note += f"; all its stages {theirs[name]['meteor']:.4g}"
            rows.append(row(f"{name}: {metric}", value, "", note))
        largest = max(abs(value - java_values[m]) for m, value in ours.items() if not m.startswith("meteor"))
        rows.append(row(f"{name}: largest difference of BLEU, ROUGE-L and CIDEr", largest))
    return rows + timed(sets["human"], theirs["human"]["seconds"])


def timed(made: dict, java_seconds: float) -> list[dict]:
    from quintet.metrics.captions import meteor, tokenizer
    from quintet.metrics.captions.metrics import scores

    seconds = []
    for _ in range(REPEATS):
        tokenizer._tokens.cache_clear()  # each time as if it were the first
        meteor._stem.cache_clear()
        begin = time.perf_counter()
        scores(made["hypotheses"], made["references"])
        seconds.append(time.perf_counter() - begin)
    best = min(seconds)
    return [
        row("all scores of the human set, ours", best, "s", f"one process, best of {REPEATS}, nothing cached"),
        row("the same by Java and its Python", java_seconds, "s", "BLEU, ROUGE-L, CIDEr and METEOR's two stages"),
        row("times as fast", java_seconds / best),
    ]


def publish(args, cfg, title: str, rows: list[dict], seconds: float) -> None:
    from benchmarks.common import data_name
    from quintet.harness.results import write_result

    write_result(RESULTS / f"{args.publish}.json", title=title, rows=rows,
                 protocol=f"pycocoevalcap 1.2, {java_version()}; the same captions as text to both",
                 data=f"{data_name(cfg)}, split {args.split}", subset=args.subset, seconds=seconds)  # fmt: skip


def java_version() -> str:
    lines = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.splitlines()
    return lines[0].replace('"', "") if lines else "Java"


if __name__ == "__main__":
    main()

"""Every benchmark that needs neither data nor peers, one after another; what it finds is kept by commit.

    make bench                      # or: python -m benchmarks.everything [--into logs/bench/<name>] [--only crf ...]
    python -m benchmarks.compare logs/bench/<one commit> logs/bench/<another>

About half an hour on two quiet cores. The tables of docs/results.md that have peers or real data beside them come from
the same scripts with more options; each says in its first lines which.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import REPOSITORY
from quintet.harness.results import commit

SCRIPTS = {  # result: module and options
    "harness_startup": ["harness.startup", "experiment=wavenet/sample", "trainer=cpu"],
    "harness_overhead": ["harness.overhead"],
    "harness_ddp_scaling": ["harness.scaling"],
    "harness_checkpoints": ["harness.checkpoints"],
    "harness_loaders": ["harness.loaders"],
    "wavenet_generation": ["wavenet.generation"],
    "rare_memory_speed": ["rare_events.memory", "--slots", "8192", "100000"],
    "rare_events_episodes": ["rare_events.episodes", "experiment=rare_events/sample"],
    "deeplab_crf_speed": ["deeplab.crf", "--images", "3"],
    "deeplab_aspp_speed": ["deeplab.aspp"],
    "deeplab_training_speed": ["deeplab.segmentation"],
}


def main() -> int:
    """Command line; the exit code is the number of scripts that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = commit()
    folder = REPOSITORY / "logs/bench" / f"{here['commit']}{'-dirty' if here['dirty'] else ''}"
    parser.add_argument("--into", type=Path, default=folder, help="folder of the result files")
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), help="results whose name contains one of these")
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (script, *options) in SCRIPTS.items():
        if not any(word in name for word in args.only):
            continue
        print(f"\n== {name}: python -m benchmarks.{' '.join([script, *options])}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{script}", *options, "--publish", name],
            cwd=REPOSITORY,
            env=os.environ | {"QUINTET_RESULTS": str(args.into.resolve())},
        )
        failed += [name] if done.returncode else []
    print(f"\nresults in {args.into}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

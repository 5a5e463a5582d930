"""Every benchmark that needs neither data nor peers, one after another; what it finds is kept by commit.

    make bench                      # or: python benchmarks/everything.py [--into logs/bench/<name>] [--only crf ...]
    python benchmarks/compare.py logs/bench/<one commit> logs/bench/<another>

About half an hour on two quiet cores. The tables of docs/results.md that have peers or real data beside them come from
the same scripts with more options; each says in its first lines which.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from _common import REPOSITORY

from quintet.harness.results import commit

SCRIPTS = {  # result: script and options
    "harness_startup": ["startup.py", "experiment=wavenet/sample", "trainer=cpu"],
    "harness_overhead": ["overhead.py"],
    "harness_ddp_scaling": ["scaling.py"],
    "harness_checkpoints": ["checkpoints.py"],
    "harness_loaders": ["loaders.py"],
    "wavenet_generation": ["generation.py"],
    "rare_memory_speed": ["memory.py", "--slots", "8192", "100000"],
    "rare_events_episodes": ["episodes.py", "experiment=rare_events/sample"],
    "deeplab_crf_speed": ["crf.py", "--images", "3"],
    "deeplab_aspp_speed": ["aspp.py"],
    "deeplab_training_speed": ["segmentation.py"],
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
        print(f"\n== {name}: python benchmarks/{' '.join([script, *options])}", flush=True)
        done = subprocess.run(
            [sys.executable, f"benchmarks/{script}", *options, "--publish", name],
            cwd=REPOSITORY,
            env=os.environ | {"QUINTET_RESULTS": str(args.into.resolve())},
        )
        failed += [name] if done.returncode else []
    print(f"\nresults in {args.into}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

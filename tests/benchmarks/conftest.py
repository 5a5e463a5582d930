"""The benchmark scripts are no package: their folder goes on the path, as `python benchmarks/x.py` has it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

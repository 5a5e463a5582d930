"""Evaluate a run, or run another protocol on it: `python eval.py run=logs/NAME/ID protocol=generate`."""

import sys

from quintet.harness import cli

if __name__ == "__main__":
    sys.exit(cli.eval_main())

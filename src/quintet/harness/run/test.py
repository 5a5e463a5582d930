"""The default protocol: nothing beyond the test loop, which eval.py runs itself."""

from pathlib import Path


class Test:
    """Adds nothing to the test loop's own metrics (`test/bits`, `test/bits_<speaker>`, `test/frame_accuracy`)."""

    __test__ = False  # not a pytest class

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        return {}

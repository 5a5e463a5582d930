"""train.py, one rank of which fails: `FAIL="RANK PLACE user|bug" python failing_rank.py OVERRIDES ...`."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
RANK, PLACE, KIND = os.environ["FAIL"].split()


def fail() -> None:
    from quintet.common.errors import UserError

    raise (UserError if KIND == "user" else RuntimeError)(f"rank {RANK} has had enough")


def main() -> None:
    import quintet  # noqa: F401, I001  before Lightning: see quintet.common.compat
    from lightning.pytorch import Callback

    from quintet.harness.run import fit

    class Fails(Callback):
        pass

    def hook(self, trainer, *args, **kwargs):
        if trainer.global_rank == int(RANK) and (PLACE != "on_train_batch_start" or trainer.global_step == 2):
            fail()

    build_pair, build_trainer = fit.build_pair, fit.build_trainer

    def failing_pair(*args):
        if PLACE == "build" and os.environ.get("LOCAL_RANK", "0") == RANK:
            fail()
        return build_pair(*args)

    def failing_trainer(*args):
        trainer = build_trainer(*args)
        trainer.callbacks.append(Fails())
        return trainer

    if PLACE != "build":
        setattr(Fails, PLACE, hook)
    fit.build_pair, fit.build_trainer = failing_pair, failing_trainer
    script = REPOSITORY / "train.py"
    # not runpy: the other rank is started with sys.argv[0], which is to be this file
    exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__", "__file__": str(script)})


if __name__ == "__main__":
    main()

"""Is a training that is killed again and again the one that nobody killed? SIGKILL at random moments, then resume=.

    python -m benchmarks.harness.kill --kills 20 --publish harness_resume_kills

For each case a small training is run once undisturbed, and once killed `--kills` times: at a random moment of a random
step, while it starts, in the middle of writing a checkpoint, before the written file gets its name. After the last
resumption the two runs are compared bit for bit: weights, averaged weights, optimiser and schedule, random states, the
best checkpoint, and every row of metrics.csv but for the columns that measure time.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import one_line_errors, parser, report, row
from benchmarks.harness.forked import Life, warm_up
from benchmarks.harness.same_runs import differences, last_checkpoint
from quintet.common.errors import UserError

COMMON = ["callbacks=quiet", "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
          "callbacks.last.every_n_steps=3"]  # fmt: skip
AVERAGED = "+callbacks.ema={_target_: quintet.harness.callbacks.ema.Ema, decay: 0.9}"
WAVENET = ["experiment=wavenet/sample", "model.network.stacks=1", "model.network.layers_per_stack=4",
           "model.network.residual_channels=8", "model.network.gate_channels=8", "model.network.skip_channels=8",
           "model.network.head_channels=8",
           "data.source.num_utterances=5", "data.source.seconds=1.0",
           "data.chunk_samples=1600", "data.val_fraction=0.2",
           "trainer.max_epochs=2", "trainer.val_check_interval=0.4"]  # fmt: skip
RARE = ["experiment=rare_events/sample", "model.network.channels=[4,8]", "model.network.width=16",
        "model.network.dropout=0.3", "model.memory.slots=64", "model.memory.neighbours=16", "model.lifelong=true",
        "data.batch_size=2", "data.length=15", "data.shots=[1,2]", "data.episodes_per_epoch=8", "data.val_episodes=4",
        "trainer.max_epochs=4", "callbacks.last.every_n_steps=20"]  # fmt: skip
INFLUENCE = ["experiment=influence/sample", "model.optimizer.name=adam", "model.optimizer.lr=0.01",
             "data.batch_size=16", "trainer.max_epochs=4",
             "callbacks.best={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: best, monitor: val/loss,"
             " dirpath: '${run_dir}/checkpoints', enable_version_counter: false}"]  # fmt: skip
DEEPLAB = ["experiment=deeplab/sample", "model.backbone.name=squeezenet1_1", "model.backbone.output_stride=16",
           "model.network.channels=8", "model.network.dropout=0.3", "data.crop_size=33", "data.batch_size=2",
           "data.eval_size=129", "model.optimizer.lr=1e-4",
           "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1"]  # fmt: skip
CAPTIONS = ["experiment=show_and_tell/sample", "model.encoder.image_size=32", "model.network.embedding=16",
            "model.network.hidden=16", "model.network.dropout=0.3", "data.source.num_train=40",
            "data.source.num_val=6", "data.source.num_test=6", "data.batch_size=4", "data.resize_size=40",
            "data.crop_size=32", "data.mirror=true", "data.colour_jitter=true", "trainer.max_epochs=3",
            "trainer.check_val_every_n_epoch=1"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training to kill: how the results page calls it, and its overrides."""

    title: str
    overrides: list[str]


CASES = {
    "wavenet": Case("WaveNet, 2 workers, average of weights", [*WAVENET, AVERAGED, "data.num_workers=2"]),
    "rare_events": Case("rare events, life-long memory", RARE),
    "influence": Case("logistic regression with Adam", INFLUENCE),
    "deeplab": Case("DeepLab, 2 workers", [*DEEPLAB, "data.num_workers=2"]),
    "captioning": Case("Show and Tell, average of weights", [*CAPTIONS, AVERAGED]),
    "two_stage": Case(
        "Show and Tell, two stages, average of weights",
        [*CAPTIONS, AVERAGED, "callbacks.two_stage.epochs=1", "data.features=${model.encoder}"],
    ),
}
PLACES = ("writing", "written", "linked")  # where in the writing of a checkpoint a training kills itself
SHOWN = 6  # differences


def end() -> None:
    """SIGKILL to this process and its data workers."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def dies_saving(place: str, which: int, share: float) -> Callable[[], None]:
    """What makes a start kill itself at its `which`-th checkpoint: with that share of it written, or all, or linked."""

    def prepare() -> None:
        from quintet.harness.resume import checkpoint as module

        left = [which]
        save, keep = module.torch.save, module._keep_previous

        def due() -> bool:
            left[0] -= 1
            return left[0] == 0

        def half_saved(content, file, *args, **kwargs):
            save(content, file, *args, **kwargs)
            if place in ("writing", "written") and due():
                if place == "writing":
                    file.truncate(int(share * file.tell()))
                end()

        def kept(target):
            keep(target)
            if place == "linked" and due():
                end()

        module.torch.save, module._keep_previous = half_saved, kept

    return prepare


@dataclass
class Tally:
    """What became of one case."""

    kills: int = 0
    while_saving: int = 0
    while_starting: int = 0
    lost: int = 0  # most steps that one kill cost
    differences: tuple[str, ...] = ()


def kill_and_resume(case: Case, kills: int, seed: str, folder: Path) -> Tally:
    """Run the case undisturbed and killed `kills` times, and compare."""
    chance, tally = random.Random(seed), Tally()
    paths = [f"paths.log_dir={folder}/logs", f"paths.cache_dir={folder}/cache", "name=kill"]
    command = [*COMMON, *case.overrides, *paths]
    whole, run = (folder / "logs" / "kill" / name for name in ("whole", "killed"))
    log = folder / "output.log"
    first = Life([*command, "run_id=whole"], log)
    first.finish()
    steps, seconds = last_checkpoint(whole)["global_step"], time.monotonic() - first.started
    reached = 0
    while True:
        begun = any((run / "checkpoints").glob("last.ckpt*")) and resumable(run)
        started_as = [f"resume={run}"] if begun else [*command, "run_id=killed"]
        left = kills - tally.kills
        if left == 0:
            final = Life(started_as, log)
            final.finish()
            tally.lost = max(tally.lost, reached - final.began_at)
            break
        kind = chance.choices(("step", "saving", "starting"), (5, 3, 1))[0]
        place = chance.choice(PLACES)
        prepare = dies_saving(place, chance.randint(1, 2), chance.random()) if kind == "saving" else lambda: None
        life = Life(started_as, log, prepare)
        if kind == "starting":
            deadline = life.started + chance.uniform(0, min(2.0, seconds / 2))
            life.wait(lambda deadline=deadline: time.monotonic() > deadline)
        else:
            # the rest of the run is shared out among the kills to come
            rest = steps - max(0, reached)
            ahead = min(chance.uniform(1, 2 * max(1.0, rest / (left + 1))), max(1.0, rest - left))
            delay = chance.uniform(0, 0.05)
            life.wait(lambda life=life, ahead=ahead: life.began_at >= 0 and life.steps >= life.began_at + ahead)
            if kind == "step":
                time.sleep(delay)
            else:
                life.wait()
        life.kill()
        if life.code == 0:
            raise UserError(f"{case.title}: the training ended before it was killed {kills} times: make it longer")
        if life.code != -signal.SIGKILL:
            life.finish()
        if life.began_at >= 0:
            tally.lost = max(tally.lost, reached - life.began_at)
        reached = max(life.steps, 0) if life.steps >= 0 else reached
        tally.kills += 1
        tally.while_saving += kind == "saving"
        tally.while_starting += life.began_at < 0
    found = list(differences(whole, run))
    tally.differences = (*found[:SHOWN], *([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []))
    return tally


def side_by_side(names: list[str], jobs: int, folder: Path, kills: int, seed: int) -> dict[str, Tally]:
    """The tallies of these cases, `jobs` at a time, each printed when it is known."""
    waiting, running, tallies = list(names), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            (folder / name).mkdir(parents=True, exist_ok=True)
            running[os.fork() or _one(name, folder / name, kills, seed)] = name
        pid, status = os.waitpid(-1, 0)
        name = running.pop(pid)
        if status:
            raise UserError(f"{CASES[name].title}: see {folder / name}/output.log (--keep), and above")
        found = json.loads((folder / name / "tally.json").read_text())
        print(json.dumps({"case": name} | found), flush=True)
        tallies[name] = Tally(**{key: value for key, value in found.items() if key != "seconds"})
    return {name: tallies[name] for name in names}


def _one(name: str, folder: Path, kills: int, seed: int) -> int:
    """A case in a process of its own, which ends here."""
    code, start = 1, time.monotonic()
    try:
        with one_line_errors():
            tally = kill_and_resume(CASES[name], kills, f"{seed} {name}", folder)
            seconds = round(time.monotonic() - start, 1)
            (folder / "tally.json").write_text(json.dumps(vars(tally) | {"seconds": seconds}))
        code = 0
    except SystemExit as end:
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def resumable(run: Path) -> bool:
    """Whether the run has a checkpoint to resume from."""
    from quintet.harness.resume.checkpoint import newest_checkpoint

    return newest_checkpoint(run / "checkpoints") is not None


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_resume_kills")
    options.add_argument("--kills", type=int, default=20, help="of each case")
    options.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=1, help="cases at a time")
    options.add_argument("--keep", type=Path, help="folder for the runs, kept; default: a temporary one")
    args = options.parse_args()
    start, made = time.monotonic(), []
    with one_line_errors():
        names = args.cases.split(",")
        unknown = [name for name in names if name not in CASES]
        if unknown:
            raise UserError(f"--cases={unknown[0]}: choose from {', '.join(CASES)}")
        warm_up()
        with tempfile.TemporaryDirectory() as temporary:
            tallies = side_by_side(names, args.jobs, args.keep or Path(temporary), args.kills, args.seed)
    for name, tally in tallies.items():
        title = CASES[name].title
        note = f"{tally.kills} kills, {tally.while_saving} while saving, {tally.while_starting} before training"
        made.append(row(f"{title}: end state equal", "no" if tally.differences else "yes", "", note))
        made.append(row(f"{title}: steps lost at most", tally.lost, "steps"))
    report(
        args.publish,
        made,
        title="Trainings killed and resumed",
        protocol=f"SIGKILL {args.kills} times a case, resume= each time; compared bit for bit with the one"
        " that nobody killed: weights, averages, optimiser, random states, best checkpoint, metrics.csv",
        data="synthetic samples",
        subset=False,
        seconds=time.monotonic() - start,
    )
    sys.exit(int(any(tally.differences for tally in tallies.values())))


if __name__ == "__main__":
    main()

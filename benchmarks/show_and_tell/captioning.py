"""How fast captions are found, beside a plain beam of one image at a time and Hugging Face's generate; training too.

    python -m benchmarks.show_and_tell.captioning --run <run of flickr8k_mobilenet> [--root <flickr8k>]
        [--images 256] [--batch 64] [--peer <python with transformers>] [--publish show_and_tell_speed --subset]

Captions are found from cached image features, so that no encoder is in the times. The plain beam is im2txt's: one image
at a time, all its unfinished captions in one pass of the same decoder, Python lists for the rest, to the longest
caption; a second one stops where its best complete caption can no longer be beaten. Every repeat times each in turn;
medians. All captions are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import one_line_errors, report, row
from quintet.common.errors import UserError
from quintet.data.special_ids import BOS, EOS, PAD, UNKNOWN

MAX_LENGTH, SILENT = 20, [PAD, BOS, UNKNOWN]
PEER = Path(__file__).with_name("captioning_peer.py")


@torch.no_grad()
def plain_beam(decoder: Any, features_1f: Tensor, beam: int, early: bool) -> list[int]:
    """The best caption's ids of one image, eos included."""
    state, partial, complete = decoder.start(features_1f), [(0.0, [BOS])], []
    for _ in range(MAX_LENGTH):
        state = decoder.step(torch.tensor([words[-1] for _, words in partial]), state)
        log_nv = decoder.logits(state.m).log_softmax(1)
        log_nv[:, SILENT] = -torch.inf
        top = log_nv.topk(beam, dim=1)
        grown = []
        for n, (logs, ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
            for log, word in zip(logs, ids, strict=True):
                found = (partial[n][0] + log, [*partial[n][1], word])
                if word == EOS:
                    complete.append(found)
                else:
                    grown.append((*found, n))
        grown = sorted(grown, key=lambda one: -one[0])[:beam]
        partial = [(total, words) for total, words, _ in grown]
        best = max((total for total, _ in complete), default=-torch.inf)
        if not partial or (early and partial[0][0] <= best):
            break
        rows = torch.tensor([n for *_, n in grown])
        state = type(state)(*(part[rows] for part in state))
    return max(complete or partial, key=lambda one: one[0])[1][1:]


def ours(module: Any, features_if: Tensor, beam: int, batch: int) -> list[list[str]]:
    """The best caption of every image, in words."""
    return [captions[0].words for part in features_if.split(batch) for captions in module.generate(part, beam)]


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = call()
    return time.perf_counter() - began, answer


def search_rows(module: Any, features_if: Tensor, beams: list[int], batch: int, repeats: int,
                plain_images: int) -> Iterator[dict]:  # fmt: skip
    """Captions a second; the plain beams on the first `plain_images` images, which is enough to time them."""
    decoder, few = module.network, features_if[:plain_images]
    for beam in beams:
        times: dict[str, list[float]] = {"ours": [], "plain": [], "early": []}
        ours(module, few, beam, batch)  # warm: the input table
        for _ in range(repeats):
            spent, said = seconds_of(lambda beam=beam: ours(module, features_if, beam, batch))
            times["ours"].append(spent / len(features_if))
            for name in ("plain", "early"):
                spent, ids = seconds_of(
                    lambda beam=beam, early=name == "early": [plain_beam(decoder, f[None], beam, early) for f in few]
                )
                times[name].append(spent / len(few))
                words = [[module.vocabulary[word] for word in one if word != EOS] for one in ids]
                same = sum(a == b for a, b in zip(said, words, strict=False))
                if same < len(few):
                    raise UserError(
                        f"beam {beam}: {len(few) - same} of {len(few)} captions differ from the plain beam's"
                    )
        rate = {name: 1 / statistics.median(spent) for name, spent in times.items()}
        yield row(
            f"beam {beam}, ours, batch {batch}", rate["ours"], "captions/s", f"{len(few)} of {len(few)} identical"
        )
        yield row(f"beam {beam}, plain, one image at a time", rate["plain"], "captions/s")
        yield row(f"beam {beam}, ours over plain", rate["ours"] / rate["plain"], "x", "goal: 10")
        yield row(f"beam {beam}, plain that stops early", rate["early"], "captions/s")
        yield row(f"beam {beam}, ours over plain that stops early", rate["ours"] / rate["early"], "x")


def peer_rows(python: str, module: Any, beams: list[int], batch: int) -> Iterator[dict]:
    """Hugging Face's generate on a GPT-2 of the same width and vocabulary."""
    asked = {"width": module.network.config.hidden, "vocabulary": len(module.vocabulary), "beams": beams,
             "batch": batch, "length": MAX_LENGTH, "threads": torch.get_num_threads()}  # fmt: skip
    done = subprocess.run([python, str(PEER), json.dumps(asked)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--peer {python}: {done.stderr.strip().splitlines()[-1]}")
    for found in json.loads(done.stdout.splitlines()[-1]):
        yield row(found["metric"], found["value"], "captions/s", found["note"])


def training_rows(module: Any, datamodule: Any, steps: int, repeats: int) -> Iterator[dict]:
    """Words a second of Lightning's loop over our module, and of a bare loop over torch's layers on ready batches."""
    from lightning import Trainer

    batches = [batch for batch, _ in zip(datamodule.train_dataloader(), range(steps), strict=False)]
    words = sum(int(batch.lengths.sum()) - len(batch.words) for batch in batches)
    spent: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(repeats):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", max_steps=steps, limit_val_batches=0, enable_model_summary=False,
                          gradient_clip_val=5.0, use_distributed_sampler=False, **quiet)  # fmt: skip
        datamodule.trainer = None
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        spent["ours"].append(seconds_of(lambda t=trainer, x=loader: t.fit(module, x))[0])
        spent["bare"].append(bare_loop(module, batches))
    rate = {name: words / statistics.median(times) for name, times in spent.items()}
    yield row("training, our module under Lightning", rate["ours"], "words/s", "its start and end in the time")
    yield row("training, bare loop over torch's layers", rate["bare"], "words/s", "padding predicted, not left out")
    yield row("training, ours over the bare loop", rate["ours"] / rate["bare"], "x")


def bare_loop(module: Any, batches: list) -> float:
    """Seconds of embedding, LSTM, linear and cross-entropy as one writes them down, with Adam and clipping."""
    config, size = module.network.config, len(module.vocabulary)
    image = torch.nn.Linear(module.network.features, config.embedding, bias=False)
    words, lstm = (
        torch.nn.Embedding(size, config.embedding),
        torch.nn.LSTM(config.embedding, config.hidden, batch_first=True),
    )
    output, dropout = torch.nn.Linear(config.hidden, size), torch.nn.Dropout(config.dropout)
    parameters = [p for layer in (image, words, lstm, output) for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    began = time.perf_counter()
    for batch in batches:
        x_btd = torch.cat([image(batch.features)[batch.image_row][:, None], words(batch.words[:, :-1])], 1)
        logits = output(dropout(lstm(dropout(x_btd))[0][:, 1:]))
        loss = F.cross_entropy(logits.flatten(0, 1), batch.words[:, 1:].flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
    return time.perf_counter() - began


def load(run: str, root: str | None) -> tuple[Any, Any]:
    """The run's module in eval mode and its data module with cached features."""
    from quintet.harness.run.second_run import load_run

    module, datamodule = load_run(run, root, "cpu")
    if module.joint:
        raise UserError(f"--run {run} was fine-tuned: give one of stage 1 alone, whose features are cached")
    return module, datamodule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="directory of a run with data.features")
    parser.add_argument("--root", default=None, help="where its data is now")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--plain-images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3, 20])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--peer", default=None, help="a Python with transformers")
    parser.add_argument("--subset", action="store_true", help="the data are a part of the official set: say so")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = parser.parse_args()
    began, busy = time.perf_counter(), os.getloadavg()[0]
    with one_line_errors():
        module, datamodule = load(args.run, args.root)
        count = min(args.images, datamodule.num_images("val"))
        features = datamodule.image_batch("val", range(count)).features
        rows = list(search_rows(module, features, args.beams, args.batch, args.repeats, args.plain_images))
        if args.peer:
            rows += peer_rows(args.peer, module, args.beams, args.batch)
        rows += training_rows(module, datamodule, args.steps, args.repeats)
    report(
        args.publish,
        rows,
        title="Show and Tell: captions a second on CPU, and training",
        protocol=f"{count} validation images, cached features, {torch.get_num_threads()} threads, median of"
        f" {args.repeats} repeats; plain beams on {args.plain_images} images",
        data=Path(args.root or "flickr8k").name,
        subset=args.subset,
        seconds=time.perf_counter() - began,
        extra={"load before": busy},
    )


if __name__ == "__main__":
    main()

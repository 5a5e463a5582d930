"""How fast DeepLab trains and infers, beside torchvision's DeepLabv3 and beside the network without holes.

    python -m benchmarks.deeplab.segmentation [--root <folder or archive of VOC2012> --subset] [--publish deeplab_speed]

Three networks on one backbone, channels last: `ours` (ASPP-L, loss on labels as coarse as the scores, batch norm
frozen, all as in the paper); `torchvision` (DeepLabv3's head, loss at full resolution and batch norm that trains, as in
its reference script); `strided` (ours at the backbone's own stride 32 with one 1 x 1 convolution). Random pictures; a
step has forward, backward and SGD; an inference ends with a class for each pixel. Each number is taken in a fresh
process, networks in turn. With --root also what the data module delivers: real images, decoded, scaled, cut, mirrored.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import REPOSITORY, one_line_errors, report, row
from benchmarks.influence.peers import memory_mb
from quintet.common.errors import UserError
from quintet.data.batches import SegmentationBatch
from quintet.papers.deeplab.atrous import to_output_stride
from quintet.papers.deeplab.cpu_kernels import use_cpu_kernels
from quintet.papers.deeplab.module import DeepLabModule

NETWORKS = ("ours", "torchvision", "strided")
BATCHES = {"mobilenet_v2": 8, "resnet50": 4}
PRECISIONS = ("fp32", "bf16")
CLASSES = 21


@dataclass
class Setting:
    """What is measured."""

    crop: int = 257
    output_stride: int = 16
    rounds: int = 3
    steps: int = 2  # that are timed in each process, after one that is not
    device: str = "cpu"


@dataclass
class Candidate:
    """One network with the loss and the classes that go with it."""

    network: nn.Module
    loss: Callable[[SegmentationBatch], Tensor]
    classes: Callable[[SegmentationBatch], Tensor]
    optimizer: torch.optim.Optimizer


def ours(backbone: str, output_stride: int, head: str) -> Candidate:
    """The module that train.py trains."""
    module = DeepLabModule(
        {"head": head, "cpu_kernels": True},
        {"name": backbone, "output_stride": output_stride, "weights": None},
        {"name": "sgd", "lr": 1e-4, "momentum": 0.9, "schedule": "constant"},
        {"num_classes": CLASSES, "classes": [str(c) for c in range(CLASSES)]},
    )
    optimizer = module.configure_optimizers()["optimizer"]
    return Candidate(
        module, lambda batch: module.example_losses(batch).mean() + module.regularisation(), module.predict, optimizer
    )


def torchvisions(backbone: str, output_stride: int) -> Candidate:
    """Its DeepLabV3; MobileNetV2, of which it has no dilated form, with our holes."""
    from torchvision import models
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    if backbone.startswith("resnet"):
        holes = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}[output_stride]
        body = models.get_model(backbone, weights=None, replace_stride_with_dilation=holes)
        body, channels = IntermediateLayerGetter(body, {"layer4": "out"}), 2048
    else:
        body = nn.Sequential(to_output_stride(models.get_model(backbone, weights=None).features, output_stride))
        body, channels = IntermediateLayerGetter(body, {"0": "out"}), 1280
    use_cpu_kernels(body)
    network = DeepLabV3(body, DeepLabHead(channels, CLASSES), None).to(memory_format=torch.channels_last)

    def scores(batch: SegmentationBatch) -> Tensor:
        return network(batch.images)["out"].float()

    return Candidate(
        network,
        lambda batch: F.cross_entropy(scores(batch), batch.labels, ignore_index=255),
        lambda batch: scores(batch).argmax(1),
        torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4),
    )


def make(name: str, backbone: str, setting: Setting) -> Candidate:
    torch.manual_seed(0)
    if name == "torchvision":
        return torchvisions(backbone, setting.output_stride)
    return ours(backbone, *((32, "none") if name == "strided" else (setting.output_stride, "aspp_l")))


def pictures(count: int, size: int, device: str) -> SegmentationBatch:
    images = torch.rand(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (count, size, size), device=device)
    return SegmentationBatch(images, labels, torch.full((count, 2), size), torch.arange(count))


def measure(name: str, backbone: str, precision: str, setting: Setting) -> dict[str, float]:
    """Images per second and peak MiB of inference and of training in this process."""
    candidate = make(name, backbone, setting)
    candidate.network.to(setting.device)
    batch = pictures(BATCHES[backbone], setting.crop, setting.device)

    def infer() -> None:
        with torch.inference_mode():
            candidate.classes(batch)

    def train() -> None:
        loss = candidate.loss(batch)
        candidate.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        candidate.optimizer.step()

    found = {}
    low = torch.autocast(setting.device, torch.bfloat16) if precision == "bf16" else nullcontext()
    for task, run in (("inference", infer), ("training", train)):
        candidate.network.train(task == "training")
        before = peak_mib(setting.device, reset=True)
        with low:
            seconds = timed(run, setting)
        found[task] = BATCHES[backbone] / statistics.median(seconds)
        found[f"{task} MiB"] = peak_mib(setting.device) - before
    return found


def timed(run: Callable[[], None], setting: Setting) -> list[float]:
    """Seconds of each run but the first."""
    seconds = []
    for _ in range(1 + setting.steps):
        began = time.perf_counter()
        run()
        if setting.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def peak_mib(device: str, reset: bool = False) -> float:
    """Peak since the last reset: resident memory of the process, or a GPU's tensors."""
    if device == "cpu":
        return memory_mb(reset)
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return 0.0  # a GPU's peak holds the weights
    return torch.cuda.max_memory_allocated() / 2**20


def loader(root: Path, workers: int, setting: Setting) -> float:
    """Training images per second that the data module delivers, once everything has been looked at."""
    from quintet.data.segmentation.datamodule import SegmentationDataModule
    from quintet.data.segmentation.voc import VOC

    with tempfile.TemporaryDirectory() as cache:
        source = VOC(str(root), train="trainaug", masks="SegmentationClassAug")
        scales = (0.5, 0.75, 1, 1.25, 1.5)
        options = {"batch_size": 8, "crop_size": setting.crop, "scales": scales, "num_workers": workers}
        data = SegmentationDataModule(source, cache, **options)
        data.position = lambda: (0, 0)
        data.setup()
        batches = iter(data.train_dataloader())
        for _ in range(1 + 2 * workers):  # what waits in the workers when the first one comes
            next(batches)
        began = time.perf_counter()
        images = sum(len(batch.index) for batch in itertools.islice(batches, 40))
        return images / (time.perf_counter() - began)


def in_process(task: tuple[str, ...], setting: Setting) -> dict[str, float]:
    """Run `measure` in a fresh interpreter and read its last line."""
    options = [f"--{key.replace('_', '-')}={value}" for key, value in vars(setting).items()]
    command = [sys.executable, "-m", "benchmarks.deeplab.segmentation", "--child", *task, *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(task)} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_all(
    backbones: list[str], precisions: list[str], setting: Setting, run: Callable = in_process
) -> Iterator[dict]:
    """Rows for each backbone and precision, a round of all of them after the other."""
    tasks = list(itertools.product(NETWORKS, backbones, precisions))
    found: dict[tuple, list[dict]] = {task: [] for task in tasks}
    for number in range(setting.rounds):
        for task in tasks if number % 2 == 0 else reversed(tasks):
            found[task].append(run(task, setting))
            print(f"  round {number + 1}: {' '.join(task)} {found[task][-1]}", flush=True)
    medians = {
        task: {key: statistics.median(one[key] for one in ones) for key in ones[0]} for task, ones in found.items()
    }
    for backbone, precision, task in itertools.product(backbones, precisions, ("training", "inference")):
        here = {name: medians[name, backbone, precision] for name in NETWORKS}
        for name in NETWORKS:
            rates = [one[task] for one in found[name, backbone, precision]]
            note = f"{min(rates):.2f} to {max(rates):.2f}; peak {here[name][f'{task} MiB']:,.0f} MiB"
            if name != "ours":
                faster = here["ours"][task] / here[name][task]
                note += f"; ours is {faster:.2f} times as fast, with {here['ours'][f'{task} MiB']:,.0f} MiB"
            yield row(f"{backbone}, {precision}, {task}: {name}", round(here[name][task], 2), "images/s", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--root", type=Path, default=None, help="folder or .tar of VOC2012, for the loader")
    for key, kept in vars(Setting()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(kept), default=kept)
    parser.add_argument("--subset", action="store_true", help="the images are a part of the official set: say so")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    parser.add_argument("--child", nargs=3, metavar=("NETWORK", "BACKBONE", "PRECISION"), help="internal: one of them")
    args = parser.parse_args()
    setting = Setting(**{key: getattr(args, key) for key in vars(Setting())})
    began = time.perf_counter()
    with one_line_errors():
        if args.child:
            print(json.dumps(measure(*args.child, setting)))
            return
        rows = list(run_all(args.backbones, args.precisions, setting))
        for workers in (0, 2) if args.root else ():
            rate = loader(args.root, workers, setting)
            rows.append(row(f"data module, {workers} workers", round(rate, 1), "images/s", "real images, windows"))
    batches = " and ".join(f"{BATCHES[name]} ({name})" for name in args.backbones)
    report(
        args.publish,
        rows,
        title=f"DeepLab's speed at output stride {setting.output_stride}, beside torchvision's DeepLabv3 head",
        protocol=f"{CLASSES} classes, batches of {batches} pictures of {setting.crop} x {setting.crop}; a fresh "
        f"process for each network and round, {setting.rounds} rounds in turn, medians; peak memory is what the "
        "process adds once its networks are built",
        data="random pictures; the data module on the train list" if args.root else "random pictures",
        subset=args.subset,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()

"""DeepLab's part of gpu.py: network, dense CRF, ASPP's two ways, training and inference on one device."""

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import SECTION_S, Skip, require, row
from benchmarks.deeplab import aspp, segmentation
from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.module import DeepLabModule
from quintet.papers.deeplab.network import DeepLab


@dataclass
class Setting:
    """Where and how large: the paper's windows of 321 at output stride 8, CRF on images of VOC's size."""

    device: torch.device
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def crop(self) -> int:
        return 33 if self.quick else 321

    @property
    def backbones(self) -> list[str]:
        return ["mobilenet_v2"] if self.quick else ["mobilenet_v2", "resnet50", "resnet101"]

    @property
    def batch(self) -> int:
        return 2 if self.quick else 10  # the paper's

    def describe(self) -> str:
        """For the results page."""
        return f"{self.batch} windows of {self.crop} x {self.crop}, output stride 8, {segmentation.CLASSES} classes"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def seconds(run: Callable[[], object], setting: Setting, repeats: int) -> float:
    """Median of `repeats` after two that are not counted."""
    taken = []
    for _ in range(2 + repeats):
        setting.synchronize()
        began = time.perf_counter()
        run()
        setting.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


@torch.no_grad()
def forward_against_cpu(setting: Setting) -> Iterator[dict]:
    """Scores at full resolution on the device, TF32 off, against float64 on the CPU."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        torch.manual_seed(0)
        for form, backbone in (("resnet", "resnet18"), ("vgg", "vgg11")):
            config = DeepLabConfig("aspp_l", form=form, channels=64, scales=(1, 0.75, 0.5))
            network = DeepLab(BackboneConfig(backbone, output_stride=8), config, 21).eval()
            images = torch.rand(1, 3, 65, 97)
            expected = copy.deepcopy(network).double().full_resolution(images.double())
            got = network.to(setting.device).full_resolution(images.to(setting.device)).cpu()
            gap = float((got - expected).abs().max() / expected.abs().max())
            require(gap < 1e-3, f"scores of {backbone} differ from the CPU's by {gap:.2g} of the largest")
            yield row(f"forward vs float64 CPU, {backbone}, ASPP, 3 scales", gap, "of the largest", "ok, below 1e-3")
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def dense_crf(setting: Setting) -> Iterator[dict]:
    """Our tensors on the device beside pydensecrf in one process: equal labels, time of one image and of eight."""
    from benchmarks.deeplab import crf

    size = (40, 48) if setting.quick else (334, 500)
    sketch = crf.Setting(images=2 if setting.quick else 8, size=size, iterations=2 if setting.quick else 10)
    pairs, config = list(crf.synthetic(sketch)), sketch.config
    arrays = [[torch.from_numpy(array).to(setting.device) for array in pair] for pair in pairs]

    def ours(count: int) -> list[Tensor]:
        maps, images = zip(*arrays[:count], strict=True)
        return crf.mean_field.mean_field(maps, images, config)

    if setting.cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    took = {count: seconds(lambda count=count: ours(count), setting, 5) / count for count in (1, len(pairs))}
    peak = torch.cuda.max_memory_allocated(setting.device) / 2**30 if setting.cuda else None
    began = time.perf_counter()
    wanted = [crf.infer(*pair, config) for pair in pairs[:2]]
    peer = (time.perf_counter() - began) / 2
    yield row(
        "CRF: pydensecrf, one process",
        round(peer, 4),
        "s an image",
        "synthetic images; real ones: deeplab/crf.py",
    )
    for count, each in took.items():
        note = f"{peer / each:.1f} times as fast as pydensecrf; goal on a GPU: 30"
        yield row(f"CRF: ours, {count} at once", round(each, 5), "s an image", note)
    found = [marginals.cpu().numpy() for marginals in ours(2)]
    equal = min(float((a.argmax(0) == b.argmax(0)).mean()) for a, b in zip(found, wanted, strict=True))
    apart = max(float(abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    require(equal >= 0.998, f"only {100 * equal:.2f}% of the labels are pydensecrf's")
    yield row("CRF: labels equal to pydensecrf's", 100 * equal, "%", f"greatest difference of a marginal {apart:.1e}")
    if peak is not None:
        yield row(f"CRF: peak memory, {len(pairs)} at once", round(peak, 2), "GiB")


def aspp_ways(setting: Setting) -> Iterator[dict]:
    """One product and shifted sums beside four convolutions: the CPU takes the first, a GPU so far the second."""
    side = (setting.crop - 1) // 8 + 1
    wide = itertools.product(("fp32", "bf16"), (16,) if setting.quick else (1280, 2048))
    cases = [aspp.Case(channels, setting.batch, side, 8, precision) for precision, channels in wide]
    yield from aspp.run_all(cases, 10, str(setting.device))


def speeds(setting: Setting, precision: str) -> Iterator[dict]:
    """Training steps and inference of ours, torchvision's head and the network without holes."""
    for backbone in setting.backbones:
        segmentation.BATCHES[backbone] = setting.batch
        steps = segmentation.Setting(crop=setting.crop, output_stride=8, rounds=1, device=setting.device.type)
        steps.steps = 1 if setting.quick else 10
        yield from segmentation.run_all([backbone], [precision], steps, run=_here)


def _here(task: tuple[str, str, str], steps: segmentation.Setting) -> dict[str, float]:
    found = segmentation.measure(*task, steps)
    if steps.device != "cpu":
        torch.cuda.empty_cache()
    return found


def lightning_precision(setting: Setting, precision: str) -> Iterator[dict]:
    """The LightningModule under a Trainer of this precision: loss goes down, the checkpoint loads without a config."""
    if precision == "16-mixed" and not setting.cuda:
        raise Skip("Lightning has no fp16 on a CPU, it takes bf16 instead")
    import lightning

    torch.manual_seed(0)
    batch = segmentation.pictures(2, 65, "cpu")
    batch = batch._replace(labels=(batch.images[:, 0] > 0.5).long())  # red or not: can be learnt at once
    names = [str(c) for c in range(segmentation.CLASSES)]
    backbone = {"name": "resnet18", "output_stride": 8, "weights": None, "frozen_bn": False}
    optimizer = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "constant"}
    module = DeepLabModule({"head": "aspp_s"}, backbone, optimizer, {"num_classes": len(names), "classes": names})
    with torch.no_grad():
        first = float(module.example_losses(batch).mean())
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu" if setting.cuda else "cpu",
            devices=[setting.device.index or 0] if setting.cuda else 1,
            precision=precision,
            max_steps=20,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, torch.utils.data.DataLoader([batch] * 20, batch_size=None))
        trainer.save_checkpoint(Path(folder) / "x.ckpt")
        again = DeepLabModule.load_from_checkpoint(Path(folder) / "x.ckpt", map_location="cpu", weights_only=True)
    with torch.no_grad():
        last = float(again.example_losses(batch).mean())
    require(last < first - 0.05, f"the loss went from {first:.3f} to {last:.3f}")
    yield row(f"Lightning {precision}", "ok", "", f"loss {first:.2f} -> {last:.2f}, after reloading the checkpoint")


# name: (section, seconds it may take)
SECTIONS = {
    "forward vs CPU": (forward_against_cpu, SECTION_S),
    "CRF": (dense_crf, SECTION_S),
    "ASPP": (aspp_ways, SECTION_S),
    "Lightning bf16-mixed": (lambda setting: lightning_precision(setting, "bf16-mixed"), SECTION_S),
    "Lightning 16-mixed": (lambda setting: lightning_precision(setting, "16-mixed"), SECTION_S),
    "speed bf16": (lambda setting: speeds(setting, "bf16"), SECTION_S),
    "speed fp32": (lambda setting: speeds(setting, "fp32"), SECTION_S),
}

"""How fast the dense CRF is on real images: pydensecrf alone and pooled, our compiled loops, tensors on CPU and GPU.

    python -m benchmarks.deeplab.crf --root <folder or archive of VOC2012> [--checkpoint <file.ckpt>]
        [--images 10] [--publish deeplab_crf_speed --subset]

Every candidate takes each image in turn within each repeat, so that a busy moment hits all of them; medians over images
and repeats. Without --root: noisy blobs of the same size. Class probabilities come from the trained network of
--checkpoint; without one they are made from the masks, averaged over 8 x 8 pixels, with noise on their scores, and
upsampled bilinearly as a network's score map would be.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import one_line_errors, report, row
from benchmarks.influence.peers import memory_mb
from quintet.common.errors import UserError
from quintet.papers.deeplab.crf import compiled as crf_compiled
from quintet.papers.deeplab.crf import mean_field
from quintet.papers.deeplab.crf.crf import Crf, CrfConfig, infer

CLASSES = 21
MADE = "made from the masks (averaged over 8 x 8 pixels, noise, bilinear upsampling)"
PEER = "pydensecrf, one process"
Pair = tuple[np.ndarray, np.ndarray]  # probabilities (C, H, W), image (H, W, 3)


@dataclass
class Setting:
    """What is measured."""

    root: Path | None = None
    checkpoint: Path | None = None
    images: int = 10
    repeats: int = 3
    threads: int = 2
    size: tuple[int, int] = (334, 500)  # of synthetic images
    iterations: int = 10

    @property
    def config(self) -> CrfConfig:
        return CrfConfig(iterations=self.iterations, workers=self.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=None, help="folder or .tar that holds VOCdevkit/VOC2012")
    parser.add_argument("--checkpoint", type=Path, default=None, help="of a trained DeepLab run")
    parser.add_argument("--images", type=int, default=10, help="the first so many of the val list")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of our CPU back-end, and processes of the pool")
    parser.add_argument("--subset", action="store_true", help="the images are a part of the official set: say so")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = vars(parser.parse_args())
    publish, subset = args.pop("publish"), args.pop("subset")
    setting = Setting(**args)
    began, load = time.perf_counter(), os.getloadavg()[0]  # what else the machine was doing
    with one_line_errors():
        rows = list(run_all(setting))
    report(
        publish,
        rows,
        title=f"Dense CRF: time per image, {CLASSES} classes, {setting.iterations} mean-field iterations",
        protocol=f"median of {setting.repeats} repeats over the images, candidates in turn; class probabilities "
        + ("of a trained network" if setting.checkpoint else f"{MADE}, not by a network"),
        data=f"first {setting.images} val images" if setting.root else f"noisy blobs, {setting.size}",
        subset=subset,
        seconds=time.perf_counter() - began,
        extra={"load": load},
    )


def run_all(setting: Setting) -> Iterator[dict]:
    pairs = list(real(setting.root, setting.images, said_by(setting)) if setting.root else synthetic(setting))
    sides = statistics.median(image.shape[0] * image.shape[1] for _, image in pairs)
    yield row("images", len(pairs), "", f"median of {sides:,.0f} pixels")
    candidates = make_candidates(setting)
    yield from parity(candidates, pairs)
    taken = measure(candidates, pairs, setting.repeats)
    taken[f"pydensecrf, pool of {setting.threads}"] = pool(setting, pairs)
    peer, peer_cpu = taken[PEER]
    for name, (wall, cpu) in taken.items():
        note = f"{cpu:.3f} s of processor time" if cpu else "all images, start of the processes left out"
        if name != PEER:
            note += f"; {peer / wall:.2f} times as fast as {PEER}"
            note += f", {peer_cpu / cpu:.2f} times by processor time" if cpu else ""
        yield row(f"time per image: {name}", round(wall, 4), "s", note)
    for name, candidate in candidates.items():
        yield row(f"peak memory: {name}", round(peak(name, setting, pairs[0], candidate)), "MiB", "beside the image's")


def make_candidates(setting: Setting) -> dict[str, Callable[[Pair], np.ndarray]]:
    """By name, what turns one pair into marginals."""
    config = setting.config

    def compiled(threads: int) -> Callable[[Pair], np.ndarray]:
        def run(pair: Pair) -> np.ndarray:
            torch.set_num_threads(threads)
            return crf_compiled.mean_field(*map(torch.from_numpy, pair), config).numpy()

        return run

    def tensors(device: str) -> Callable[[Pair], np.ndarray]:
        def run(pair: Pair) -> np.ndarray:
            torch.set_num_threads(setting.threads)
            placed = [[torch.from_numpy(array).to(device)] for array in pair]
            return mean_field.mean_field(*placed, config)[0].cpu().numpy()

        return run

    found = {PEER: lambda pair: infer(*pair, config)}
    found |= {f"ours, compiled, threads: {n}": compiled(n) for n in sorted({1, setting.threads})}
    found[f"ours, tensors on the CPU, threads: {setting.threads}"] = tensors("cpu")
    if torch.cuda.is_available():
        found[f"ours, tensors on {torch.cuda.get_device_name()}"] = tensors("cuda")
    return found


def parity(candidates: dict, pairs: list[Pair]) -> Iterator[dict]:
    """Worst agreement with pydensecrf over the images."""
    for name, candidate in candidates.items():
        if name == PEER:
            continue
        equal, apart = [], []
        for pair in pairs:
            found, wanted = candidate(pair), candidates[PEER](pair)
            equal.append((found.argmax(0) == wanted.argmax(0)).mean())
            apart.append(abs(found - wanted).max())
        note = f"of the worst image; greatest difference of a marginal {max(apart):.1e}"
        yield row(f"labels equal to pydensecrf's: {name}", round(100 * float(min(equal)), 4), "%", note)


def measure(candidates: dict, pairs: list[Pair], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds by the clock and of processor time; everything is compiled by now."""
    walls, cpus = ({name: [] for name in candidates} for _ in range(2))
    for _ in range(repeats):
        for pair in pairs:
            for name, candidate in candidates.items():
                cpu, wall = time.process_time(), time.perf_counter()
                candidate(pair)
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {name: (statistics.median(walls[name]), statistics.median(cpus[name])) for name in candidates}


def pool(setting: Setting, pairs: list[Pair]) -> tuple[float, None]:
    """Seconds per image of the pool once its processes have started: from its first result to its last."""
    warm = 2 * setting.threads + 1  # in hand when the first result comes
    many = [pairs[n % len(pairs)] for n in range(warm + max(len(pairs), 4))]
    results = Crf(replace(setting.config, backend="pydensecrf")).refine_many(many)
    for _ in range(setting.threads):
        next(results)
    began = time.perf_counter()
    left = sum(1 for _ in results)
    return (time.perf_counter() - began) / left, None


def peak(name: str, setting: Setting, pair: Pair, candidate: Callable) -> float:
    """MiB that one image adds, in a process of its own; on a GPU, of its memory."""
    if "cpu" not in name.lower() and torch.cuda.is_available() and "tensors" in name:
        torch.cuda.reset_peak_memory_stats()
        candidate(pair)
        return torch.cuda.max_memory_allocated() / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as one:
        return one.apply(_peak, (name, setting, pair))


def _peak(name: str, setting: Setting, pair: Pair) -> float:
    candidate = make_candidates(setting)[name]
    candidate(next(synthetic(replace(setting, images=1, size=(16, 16)))))  # imports and compiles
    before = memory_mb(reset=True)
    candidate(pair)
    return memory_mb() - before


def said_by(setting: Setting) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """Probabilities (C, H, W) from an image, its mask and its number: a trained network's, or made."""
    if setting.checkpoint is None:
        return lambda image, mask, number: probabilities(mask, number)
    from quintet.papers.deeplab.module import DeepLabModule

    if not setting.checkpoint.is_file():
        raise UserError(f"--checkpoint={setting.checkpoint}: no such file")
    module = DeepLabModule.load_from_checkpoint(setting.checkpoint, map_location="cpu", weights_only=True).eval()

    @torch.no_grad()
    def predict(image: np.ndarray, mask: np.ndarray, number: int) -> np.ndarray:
        scores = module.scores(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        return scores.softmax(1)[0].contiguous().numpy()

    return predict


def real(root: Path, count: int, say: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Iterator[Pair]:
    """The first images of the val list, from a folder or an archive, and what `say` makes of them."""
    from PIL import Image

    read, close = opener(root)
    try:
        names = read("ImageSets/Segmentation/val.txt").decode().split()[:count]
        for number, name in enumerate(names):
            image = np.array(Image.open(io.BytesIO(read(f"JPEGImages/{name}.jpg"))).convert("RGB"))
            mask = np.array(Image.open(io.BytesIO(read(f"SegmentationClassAug/{name}.png"))))
            yield say(image, mask, number), image
    except (OSError, KeyError) as error:
        raise UserError(f"--root={root.name}: not VOC2012 with SegmentationClassAug ({error})") from error
    finally:
        close()


def opener(root: Path) -> tuple[Callable[[str], bytes], Callable[[], None]]:
    if root.is_dir():
        return lambda name: (root / "VOCdevkit/VOC2012" / name).read_bytes(), lambda: None
    try:
        archive = tarfile.open(root)  # noqa: SIM115  closed by the caller
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"--root={root.name}: neither a folder nor a .tar of VOC2012 ({error})") from error
    return lambda name: archive.extractfile(f"VOCdevkit/VOC2012/{name}").read(), archive.close


def synthetic(setting: Setting) -> Iterator[Pair]:
    for number in range(setting.images):
        random = np.random.default_rng(number)
        coarse = [-(-side // 64) for side in setting.size]
        mask = np.kron(random.integers(0, CLASSES, coarse), np.ones((64, 64), int))
        mask = mask[: setting.size[0], : setting.size[1]]
        image = random.integers(30, 226, (CLASSES, 3))[mask] + random.normal(0, 6, (*setting.size, 3))
        yield probabilities(mask, number), image.clip(0, 255).astype(np.uint8)


def probabilities(mask_hw: np.ndarray, seed: int) -> np.ndarray:
    """What a network could have said: (C, H, W), from a score map an eighth as large."""
    labels = torch.from_numpy(np.where(mask_hw == 255, 0, mask_hw).astype(np.int64))
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).permute(2, 0, 1).float()[None]
    size = [-(-side // 8) for side in mask_hw.shape]
    coarse = 4 * torch.nn.functional.interpolate(one_hot, size, mode="area")
    coarse += torch.randn(coarse.shape, generator=torch.Generator().manual_seed(seed))
    scores = torch.nn.functional.interpolate(coarse, mask_hw.shape, mode="bilinear", align_corners=True)
    return scores.softmax(1)[0].numpy()


if __name__ == "__main__":
    main()

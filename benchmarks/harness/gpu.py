"""Do the models work on this GPU, and how fast? Checks and timings of one CUDA device, minutes a paper, a table each.

    python -m benchmarks.harness.gpu --publish gpu        (--device cpu --quick: the same logic on a CPU, in seconds)

WaveNet's part is here, DeepLab's in gpu_deeplab.py; --publish NAME writes docs/results/<paper>_NAME.json.

Needs torch and this repository; without Lightning its rows are skipped. Every section has a time box; what fails
becomes a row "failed: reason" and the rest goes on. Data: sums of sines as mu-law classes, so no data set is needed.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))  # a GPU machine may not have it installed

from benchmarks.common import RESULTS, SECTION_S, Skip, print_table, require, row, run_section
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig

ROUNDS = 3
SPEAKERS, CHANNELS, HOP = 4, 16, 160
TINY = {"layers_per_stack": 4, "stacks": 1, "residual_channels": 8, "gate_channels": 8, "skip_channels": 16}


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@dataclass
class Setting:
    """Where and how large: the full network is nv-wavenet's 3 x 10 layers, residual 64, skip and head 256."""

    device: torch.device
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def config(self) -> WaveNetConfig:
        return WaveNetConfig(**TINY, head_channels=16) if self.quick else WaveNetConfig()

    @property
    def batch(self) -> int:
        return 2 if self.quick else 8

    @property
    def chunk(self) -> int:
        return 480 if self.quick else 16000

    @property
    def steps(self) -> int:
        return 20

    def describe(self) -> str:
        """For the results page."""
        c = self.config
        size = f"{c.stacks} x {c.layers_per_stack} layers, residual {c.residual_channels}, skip {c.skip_channels}"
        return f"{size}, {SPEAKERS} speakers, training batches of {self.batch} x {self.chunk} targets"

    def network(self, local: bool = False) -> WaveNet:
        """The same weights at every call, on the CPU."""
        torch.manual_seed(0)
        sizes = {"local_channels": CHANNELS, "hop_length": HOP} if local else {}
        return WaveNet(self.config, num_speakers=SPEAKERS, **sizes)

    @cached_property
    def audio(self) -> Tensor:
        """Classes (batch, context + chunk) of two sines a stream, from silence on."""
        from quintet.data.audio.mulaw import encode

        length = self.network().receptive_field + self.chunk
        t = torch.arange(length) / 16000
        pitch = 110 * 2 ** (torch.arange(self.batch) / 4)[:, None]
        return encode(0.4 * torch.sin(6.2832 * pitch * t) + 0.2 * torch.sin(6.2832 * 2.01 * pitch * t))

    def speakers(self, batch: int) -> Tensor:
        return torch.arange(batch) % SPEAKERS

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def forward_against_cpu(setting: Setting) -> Iterator[dict]:
    """Logits of the parallel forward on the device against float64 on the CPU, TF32 off."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        for local in (False, True):
            network, audio = setting.network(local).eval(), setting.audio[:2, : 40 * HOP]
            frames = torch.randn(2, CHANNELS, -(-audio.shape[1] // HOP)) if local else None
            with torch.no_grad():
                last = min(1000, audio.shape[1])
                expected = copy.deepcopy(network).double()(
                    audio, setting.speakers(2), local_bft=None if frames is None else frames.double(), last=last
                )
                moved = [None if x is None else x.to(setting.device) for x in (audio, setting.speakers(2), frames)]
                got = network.to(setting.device)(moved[0], moved[1], local_bft=moved[2], last=last)
            gap = (got.cpu().double() - expected).abs().max().item()
            require(gap < 1e-3, f"logits differ from the CPU's by {gap:.2g}")
            name = "speaker and local conditioning" if local else "speaker conditioning"
            yield row(f"forward vs float64 CPU, {name}", gap, "largest logit difference", "ok, below 1e-3")
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def _generate(setting: Setting, network: WaveNet, count: int, batch: int, backend: str, **options):
    from quintet.papers.wavenet.generate.interface import generate

    speakers = setting.speakers(batch).to(setting.device)
    return generate(network, count, speaker_b=speakers, batch_size=batch, backend=backend, seed=3, **options)


def generation_equality(setting: Setting) -> Iterator[dict]:
    """Queues against the parallel forward, and the CUDA graph against eager: logits, and samples of one seed."""
    network, count = setting.network().to(setting.device).eval(), 32 if setting.quick else 200
    classes, logits = _generate(setting, network, count, 2, "eager", return_logits=True)
    silence = torch.full((2, network.receptive_field), network.num_classes // 2, device=setting.device)
    with torch.no_grad():
        whole = torch.cat([silence, classes], dim=1)[:, :-1]
        parallel = network(whole, setting.speakers(2).to(setting.device), last=count)
    gap = (parallel - logits).abs().max().item()
    require(gap < 1e-3, f"eager queues and parallel forward differ by {gap:.2g}")
    yield row("generation, eager vs parallel forward", gap, "largest logit difference", "ok, below 1e-3")
    if not setting.cuda:
        raise Skip("no CUDA, so no cuda_graph")
    graph_classes, graph_logits = _generate(setting, network, count, 2, "cuda_graph", return_logits=True)
    same = (graph_classes == classes).float().mean().item()
    require(same == 1.0, f"only {100 * same:.1f}% of the samples are the same")
    yield row("generation, cuda_graph vs eager", (graph_logits - logits).abs().max().item(), "largest logit difference",
              "ok, same samples")  # fmt: skip


def _step(network, optimizer, setting: Setting, batch: tuple[Tensor, Tensor], amp: str, scaler) -> Tensor:
    audio, speakers = batch
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    with torch.autocast(setting.device.type, kind) if kind else nullcontext():
        logits = network(audio[:, :-1], speakers, last=setting.chunk)
        loss = F.cross_entropy(logits.float(), audio[:, -setting.chunk :])
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def training(setting: Setting, amp: str, compiled: bool = False) -> Iterator[dict]:
    """A few Adam steps: the loss goes down; samples/s (median step) and the peak of allocated memory."""
    network = setting.network().to(setting.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=amp == "fp16")
    if compiled:
        network.compile(backend="aot_eager" if setting.quick else "inductor")
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    batch = setting.audio.to(setting.device), setting.speakers(setting.batch).to(setting.device)
    losses, seconds = [], []
    for _ in range(setting.steps):
        setting.synchronize()
        start = time.perf_counter()
        losses.append(_step(network, optimizer, setting, batch, amp, scaler))
        setting.synchronize()
        seconds.append(time.perf_counter() - start)
    first, last = losses[0].item(), losses[-1].item()
    name = f"training {amp}{' + compile' if compiled else ''}"
    require(last < first - 0.05, f"the loss went from {first:.3f} to {last:.3f}")
    rate = setting.batch * setting.chunk / statistics.median(seconds[len(seconds) // 3 :])
    yield row(name, rate, "samples/s", f"loss {first:.2f} -> {last:.2f} in {setting.steps} steps")
    if setting.cuda:
        yield row(f"{name}, peak memory", torch.cuda.max_memory_allocated(setting.device) / 2**30, "GiB")


def checkpoint_resume(setting: Setting) -> Iterator[dict]:
    """Weights after 4 steps in one go against 2 + a saved and weights_only-loaded checkpoint + 2."""
    straight = _train_some(setting, 4, None)
    half = _train_some(setting, 2, None)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(half, Path(folder) / "x.ckpt")
        loaded = torch.load(Path(folder) / "x.ckpt", map_location="cpu", weights_only=True)
    resumed = _train_some(setting, 2, loaded)
    gap = max((resumed["network"][k] - v).abs().max().item() for k, v in straight["network"].items())
    require(gap < 1e-4, f"resumed weights differ by {gap:.2g}")
    note = "bit-identical" if gap == 0 else "ok, below 1e-4; atomic adds on a GPU are not ordered"
    yield row("checkpoint resume", gap, "largest weight difference", note)


def _train_some(setting: Setting, steps: int, state: dict | None) -> dict:
    network = setting.network().to(setting.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    batch = setting.audio.to(setting.device), setting.speakers(setting.batch).to(setting.device)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=False)
    for _ in range(steps):
        _step(network, optimizer, setting, batch, "fp32", scaler)
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def lightning_precision(setting: Setting, precision: str) -> Iterator[dict]:
    """The LightningModule under a Trainer of this precision: loss goes down, checkpoint loads without a config."""
    if precision == "16-mixed" and not setting.cuda:
        raise Skip("Lightning has no fp16 on a CPU, it takes bf16 instead")
    import lightning

    from quintet.data.batches import AudioBatch
    from quintet.papers.wavenet.module import WaveNetModule

    mask = torch.ones(setting.batch, setting.chunk, dtype=torch.bool)
    batch = AudioBatch(
        setting.audio, mask, setting.speakers(setting.batch), None, None, None, torch.arange(setting.batch)
    )
    data_info = {"sample_rate": 16000, "num_classes": 256, "speakers": list("abcd"), "tags": [], "local_channels": 0}
    data_info |= {"hop_length": 0, "phones": []}
    torch.manual_seed(0)
    module = WaveNetModule(asdict(setting.config), {"lr": 3e-3}, data_info)
    with torch.no_grad():
        first = module.example_losses(batch).mean().item()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu" if setting.cuda else "cpu",
            devices=[setting.device.index or 0] if setting.cuda else 1,
            precision=precision,
            max_steps=setting.steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, torch.utils.data.DataLoader([batch] * setting.steps, batch_size=None))
        trainer.save_checkpoint(Path(folder) / "x.ckpt")
        again = WaveNetModule.load_from_checkpoint(Path(folder) / "x.ckpt", map_location="cpu", weights_only=True)
    with torch.no_grad():
        last = again.example_losses(batch).mean().item()
    require(last < first - 0.05, f"the loss went from {first:.3f} to {last:.3f}")
    yield row(f"Lightning {precision}", "ok", "", f"loss {first:.2f} -> {last:.2f}, after reloading the checkpoint")


def generation_speed(setting: Setting, backend: str) -> Iterator[dict]:
    """Samples/s of one stream and of all streams; priming and capture are left out by differencing two lengths."""
    if backend == "cuda_graph" and not setting.cuda:
        raise Skip("no CUDA")
    network = setting.network().to(setting.device).eval()
    few, many = (8, 40) if setting.quick else (64, 864 if backend == "eager" else 8064)
    for batch in (1, 2) if setting.quick else (1, 8, 64):
        rates = []
        for _ in range(ROUNDS):
            spent = [_seconds(setting, network, count, batch, backend) for count in (few, many)]
            rates.append((many - few) / max(spent[1] - spent[0], 1e-9))
        rate = statistics.median(rates)
        note = f"{rate * batch:.0f} over all streams; median of {ROUNDS}"
        yield row(f"generation {backend}, batch {batch}", rate, "samples/s a stream", note)


def _seconds(setting: Setting, network: WaveNet, count: int, batch: int, backend: str) -> float:
    setting.synchronize()
    start = time.perf_counter()
    _generate(setting, network, count, batch, backend)
    setting.synchronize()
    return time.perf_counter() - start


# name: (section, seconds it may take)
SECTIONS = {
    "forward vs CPU": (forward_against_cpu, SECTION_S),
    "generation equality": (generation_equality, SECTION_S),
    "checkpoint resume": (checkpoint_resume, SECTION_S),
    "training fp32": (lambda setting: training(setting, "fp32"), SECTION_S),
    "training bf16": (lambda setting: training(setting, "bf16"), SECTION_S),
    "training fp16": (lambda setting: training(setting, "fp16"), SECTION_S),
    "Lightning bf16-mixed": (lambda setting: lightning_precision(setting, "bf16-mixed"), SECTION_S),
    "Lightning 16-mixed": (lambda setting: lightning_precision(setting, "16-mixed"), SECTION_S),
    "generation cuda_graph": (lambda setting: generation_speed(setting, "cuda_graph"), SECTION_S),
    "generation eager": (lambda setting: generation_speed(setting, "eager"), SECTION_S),
    "training bf16 + compile": (lambda setting: training(setting, "bf16", compiled=True), SECTION_S),
}


def run_all(setting, minutes: float, sections: dict) -> list[dict]:
    """All sections in order, each within its box and all within `minutes`."""
    end, rows = time.monotonic() + 60 * minutes, []
    for name, (section, box) in sections.items():
        made = run_section(name, lambda section=section: section(setting), min(box, end - time.monotonic()))
        for entry in made:
            print(f"  {entry['metric']}: {entry['value']} {entry['unit']}", flush=True)
        rows += made
        if setting.cuda:
            torch.cuda.empty_cache()
    return rows


def papers() -> dict[str, tuple]:
    """Title, setting, sections and data of each."""
    from benchmarks.harness import gpu_deeplab

    return {
        "wavenet": ("WaveNet", Setting, SECTIONS, "synthetic sines"),
        "deeplab": ("DeepLab", gpu_deeplab.Setting, gpu_deeplab.SECTIONS, "random pictures"),
    }


def measure(paper: str, args: argparse.Namespace) -> bool:
    """Run, print and publish one paper's sections. Whether none failed."""
    start, (title, made, sections, data) = time.perf_counter(), papers()[paper]
    setting = made(torch.device(args.device), args.quick)
    rows = run_all(setting, args.minutes, sections)
    print_table(f"{title} on {device_name(setting.device)}, torch {torch.__version__}", rows)
    if args.publish:
        from quintet.harness.results import write_result

        write_result(
            RESULTS / f"{paper}_{args.publish}.json",
            title=f"{title} on one {'GPU' if setting.cuda else 'CPU'}: checks and speeds",
            rows=rows,
            protocol=f"{setting.describe()}; every section in a time box; medians",
            data=data,
            subset=False,
            seconds=time.perf_counter() - start,
        )
    return not any(str(entry["value"]).startswith("failed") for entry in rows)


def main() -> None:
    """Command line; ends with code 1 when a row failed."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--papers", nargs="+", default=["wavenet", "deeplab"], choices=["wavenet", "deeplab"])
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    options.add_argument("--quick", action="store_true", help="a tiny network: does the script work?")
    options.add_argument("--minutes", type=float, default=30.0, help="time for each paper")
    options.add_argument("--publish", metavar="NAME", help="write docs/results/<paper>_NAME.json, e.g. gpu")
    args = options.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here: use --device cpu --quick to try the script")
    passed = [measure(paper, args) for paper in args.papers]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()

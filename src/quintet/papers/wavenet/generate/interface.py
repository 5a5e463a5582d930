"""`generate`: one function, three back-ends, the same samples for the same seed.

Shapes: b batch, n generated samples, t time, k blocks, g 2 * gate channels, q classes.
"""

import importlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.wavenet.generate.plan import Plan, make_plan
from quintet.papers.wavenet.network import WaveNet

BACKENDS = {
    "eager": "quintet.papers.wavenet.generate.eager:EagerBackend",
    "numba": "quintet.papers.wavenet.generate.compiled:NumbaBackend",
    "cuda_graph": "quintet.papers.wavenet.generate.cuda_graph:CudaGraphBackend",
}


class Backend(Protocol):
    """Computes samples one after the other, with its own copy of the weights and queues."""

    def run(
        self, start: int, stop: int, bias_btkg: Tensor, uniforms_bn: Tensor, temperature: float, keep_logits: bool
    ) -> Tensor | None:
        """Write the samples of input times [start, stop) into the plan's classes; returns logits (B, T, Q) if kept."""


@torch.no_grad()
def generate(
    network: WaveNet,
    num_samples: int,
    *,
    speaker_b: Tensor | None = None,
    tags_bn: Tensor | None = None,
    local_bft: Tensor | None = None,
    prompt_bt: Tensor | None = None,
    batch_size: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    backend: str = "auto",
    return_logits: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Classes (B, num_samples) int64 that follow the prompt; with `return_logits` also logits (B, Q, num_samples).

    The receptive field is filled with silence, then the prompt. `local_bft` covers prompt + generated samples; under
    the silence it is zero. Temperature divides the logits; 0 takes the most likely class. Uniform numbers are drawn
    once, on the CPU, and turned into classes by inverting the cumulative distribution, so back-ends give the same
    samples except where a rounding difference (about 1e-6) moves the border between two classes across one of them.
    """
    if num_samples < 1 or temperature < 0:
        raise UserError(f"generate: num_samples={num_samples} must be >= 1 and temperature={temperature} >= 0")
    build = _backend(network, backend)
    given = (("speaker_b", speaker_b), ("tags_bn", tags_bn), ("local_bft", local_bft), ("prompt_bt", prompt_bt))
    batch_size = _batch_size(batch_size, given)
    if (
        prompt_bt is not None
        and prompt_bt.numel()
        and not 0 <= prompt_bt.min() <= prompt_bt.max() < network.num_classes
    ):
        raise UserError(
            f"generate: the prompt has classes outside 0..{network.num_classes - 1}: mu-law encode it first"
        )
    generator = torch.Generator().manual_seed(seed)
    uniforms_bn = torch.rand(batch_size, num_samples, dtype=torch.float64, generator=generator)
    was_training = network.training
    network.eval()
    try:
        plan = make_plan(network, num_samples, batch_size, speaker_b, tags_bn, local_bft, prompt_bt)
        logits_bqn = run_backend(build(plan), plan, uniforms_bn, float(temperature), return_logits)
    finally:
        network.train(was_training)
    classes_bn = plan.classes_bt[:, -num_samples:].clone()
    return classes_bn if logits_bqn is None else (classes_bn, logits_bqn)


def run_backend(
    steps: Backend, plan: Plan, uniforms_bn: Tensor, temperature: float, return_logits: bool
) -> Tensor | None:
    """Let a back-end fill plan.classes_bt span by span, after the conditioning of each span was computed."""
    uniforms_bn, first = uniforms_bn.to(plan.device), plan.start
    logits: list[Tensor] = []
    for start, stop in plan.spans():
        uniforms = uniforms_bn[:, start - first : stop - first]
        made = steps.run(start, stop, plan.bias(start, stop), uniforms, temperature, return_logits)
        if made is not None:
            logits.append(made)
    return torch.cat(logits, dim=1).transpose(1, 2) if return_logits else None


def _backend(network: WaveNet, name: str) -> Callable[[Plan], Backend]:
    device = next(network.parameters()).device.type
    if name == "auto":
        name = {"cpu": "numba", "cuda": "cuda_graph"}.get(device, "eager")
    if name not in BACKENDS:
        raise UserError(f"generate: backend {name!r} is unknown; choose auto, {', '.join(BACKENDS)}")
    if name == "cuda_graph" and device != "cuda":
        raise UserError(f"generate: backend cuda_graph needs the network on a CUDA GPU, not on {device}; use numba")
    if name == "numba" and device != "cpu":
        raise UserError(f"generate: backend numba needs the network on the CPU, but it is on {device}; use cuda_graph")
    module, attribute = BACKENDS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _batch_size(asked: int, given: tuple) -> int:
    """The number of streams that all given tensors have, or `asked` if none is given."""
    sizes = {name: len(value) for name, value in given if value is not None}
    size = next(iter(sizes.values()), asked)
    if any(other != size for other in sizes.values()) or asked not in (1, size):
        raise UserError(f"generate: batch_size={asked} and the rows of {sizes} differ; give one row per stream")
    return size

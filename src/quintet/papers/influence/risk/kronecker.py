"""Kronecker-factored curvature with corrected eigenvalues (EK-FAC; George et al. 2018, arXiv 1806.03884).

A layer's block of the Gauss-Newton matrix is taken to have the eigenvectors of A (x) G, with A the second moment of the
layer's inputs and G that of the gradients at its outputs; its eigenvalues are the second moments of the examples'
gradients in that basis. Legend: F inputs of a layer (a one for the bias last), O outputs, T positions that share the
weights (pixels, samples), K vectors.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.influence.risk.memory import budget
from quintet.papers.influence.risk.selection import Selection

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class KroneckerFactor(NamedTuple):
    """Eigenbases and eigenvalues of one layer's block."""

    weight: str  # parameter name; its matrix is (O, F), without the bias column
    bias: str | None
    basis_in: Tensor  # (F, F) columns are eigenvectors
    basis_out: Tensor  # (O, O)
    eigenvalues: Tensor  # (O, F)


class KroneckerCurvature:
    """The factors of all chosen layers, and functions of (curvature + ridge) applied to vectors.

    ridge_p: what is added to the diagonal, damping and L2 term; averaged within a layer's weight and bias. floor: no
    eigenvalue of the sum is taken to be smaller than this part of the layer's largest.
    """

    def __init__(self, factors: Sequence[KroneckerFactor], selection: Selection, ridge_p: Tensor,
                 floor: float = 0.0) -> None:  # fmt: skip
        covered = {name for factor in factors for name in (factor.weight, factor.bias)}
        missing = [name for name in selection.names if name not in covered]
        if missing:
            raise UserError(
                f"EK-FAC covers Linear, Conv1d and Conv2d layers (ungrouped), not {', '.join(missing[:4])}"
                f"{' ...' if len(missing) > 4 else ''}: choose other params, or solver cg, lissa or arnoldi"
            )
        self.factors, self.selection = factors, selection
        self.floor = floor
        self.ridges = [float(torch.cat([ridge_p[place] for place in self._places(f)]).mean()) for f in factors]

    def _places(self, factor: KroneckerFactor) -> list[slice]:
        return [self.selection.place(name) for name in (factor.weight, factor.bias) if name]

    def power(self, vectors_kp: Tensor, exponent: float) -> Tensor:
        """(curvature + ridge) ** exponent times each vector, (K, p); the curvature has no negative eigenvalue."""
        found = torch.empty_like(vectors_kp)
        for factor, ridge in zip(self.factors, self.ridges, strict=True):
            weight, *bias = self._places(factor)
            rows, columns = factor.eigenvalues.shape
            matrix_kof = torch.cat([vectors_kp[:, weight].unflatten(1, (rows, -1)),
                                    *(vectors_kp[:, place].unsqueeze(2) for place in bias)], 2)  # fmt: skip
            rotated_kof = factor.basis_out.T @ (matrix_kof @ factor.basis_in)
            sum_of = factor.eigenvalues.clamp(min=0) + ridge
            scaled_kof = rotated_kof * sum_of.clamp(min=self.floor * float(sum_of.max())) ** exponent
            result_kof = factor.basis_out @ (scaled_kof @ factor.basis_in.T)
            found[:, weight] = result_kof[:, :, : columns - len(bias)].flatten(1)
            for place in bias:
                found[:, place] = result_kof[:, :, -1]
        return found

    def sqrt(self, vectors_kp: Tensor) -> Tensor:
        """R of (curvature + ridge)^-1 = R R^T."""
        return self.power(vectors_kp, -0.5)

    sqrt_transposed = sqrt


class LayerTape:
    """Records per-example inputs and output gradients of a module's layers while losses are computed.

    Only layers whose weight is chosen are watched; a bias that is not chosen is left out.
    """

    def __init__(self, module: nn.Module, selection: Selection) -> None:
        names = set(selection.names)
        self.layers: dict[str, nn.Module] = {}
        for name, layer in module.named_modules():
            plain = isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1
            if plain and f"{name}.weight" in names:
                self.layers[name] = layer
        self.with_bias = {name: f"{name}.bias" in names for name in self.layers}

    def watch(self, module: Any, batch: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Layer name -> [(inputs (B, T, F), gradients (B, T, O))], one entry for each time the layer was called."""
        calls: list[tuple[str, Tensor, Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda _, args, out, name=name: calls.append((name, args[0].detach(), out)))
            for name, layer in self.layers.items()
        ]
        try:
            with torch.enable_grad():
                loss = module.example_losses(batch).sum()
        finally:
            for hook in hooks:
                hook.remove()
        outputs = [out for _, _, out in calls]
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True) if outputs else ()
        found = defaultdict(list)
        for (name, given, out), gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                found[name].append(positions(self.layers[name], given, gradient, self.with_bias[name], out))
        return found


def positions(layer: nn.Module, given: Tensor, gradient: Tensor, with_bias: bool, out: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, F) inputs, patches unrolled, and (B, T, O) output gradients of one call of a layer."""
    if isinstance(layer, nn.Linear):
        inputs, slopes = given.flatten(1, -2) if given.dim() > 2 else given[:, None], gradient
        slopes = slopes.flatten(1, -2) if slopes.dim() > 2 else slopes[:, None]
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        inputs, slopes = patches(layer, given), gradient.flatten(2).mT
    if with_bias:
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
    assert inputs.shape[:2] == slopes.shape[:2], (type(layer).__name__, given.shape, out.shape)
    return inputs, slopes


def patches(layer: nn.Conv1d | nn.Conv2d, given: Tensor) -> Tensor:
    """The input patch of each output position of a convolution, (B, T, F), in the order of its weight."""
    flat = layer.kernel_size if len(layer.kernel_size) == 2 else (1, *layer.kernel_size)
    if isinstance(layer, nn.Conv1d):
        given = given.unsqueeze(2)
    padding = layer._reversed_padding_repeated_twice
    given = F.pad(given, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    stride, dilation = ((1, *v) if len(v) == 1 else v for v in (layer.stride, layer.dilation))
    return F.unfold(given, flat, dilation=dilation, stride=stride).mT


def fit_factors(risk: Any, generator: torch.Generator) -> list[KroneckerFactor]:
    """The factors from a sweep over the training examples, and a second one where their gradients take much memory.

    With `module.sample_labels` labels come from the model's own prediction, which gives the Fisher matrix (for
    cross-entropy the Gauss-Newton matrix); without it from the data: the empirical Fisher.
    """
    state = generator.get_state()
    tape = LayerTape(risk.module, risk.selection)
    inputs_ff: dict[str, Any] = defaultdict(float)  # sums of tensors
    slopes_oo: dict[str, Any] = defaultdict(float)
    keep = len(risk.train) * risk.num_params * risk.theta.element_size() <= budget(risk.device) // 2
    kept: list[dict] = []
    for calls in _sweep(risk, tape, generator):
        for name, parts in calls.items():
            for inputs, slopes in parts:
                inputs_ff[name] = inputs_ff[name] + torch.einsum("btf,btg->fg", inputs, inputs)
                slopes_oo[name] = slopes_oo[name] + torch.einsum("bto,btn->on", slopes, slopes)
        if keep:
            kept.append({name: condensed(parts) for name, parts in calls.items()})
    bases = {
        name: (torch.linalg.eigh(risk.mean(inputs_ff[name]))[1], torch.linalg.eigh(risk.mean(slopes_oo[name]))[1])
        for name in inputs_ff
    }
    second: dict[str, Any] = defaultdict(float)
    generator.set_state(state)  # the labels of a second sweep are those of the first
    for calls in kept if keep else _sweep(risk, tape, generator):
        for name, parts in calls.items():
            basis_in, basis_out = bases[name]
            gradient_bof = sum((s @ basis_out).mT @ (a @ basis_in) for a, s in parts)
            second[name] = second[name] + gradient_bof.square().sum(0)
    biases = {name: f"{name}.bias" if tape.with_bias[name] else None for name in bases}
    return [
        KroneckerFactor(f"{name}.weight", biases[name], basis_in, basis_out, risk.mean(second[name]))
        for name, (basis_in, basis_out) in bases.items()
    ]


def condensed(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and slopes of a layer's calls -> the same gradients (B, O, F), sums of s^T a, in the most compact form."""
    features, outputs = parts[0][0].shape[2], parts[0][1].shape[2]
    if sum(inputs.shape[1] for inputs, _ in parts) * (features + outputs) <= features * outputs:
        return parts
    gradient_bof = torch.stack([slopes.mT @ inputs for inputs, slopes in parts]).sum(0)
    return [(gradient_bof, torch.eye(outputs).to(parts[0][1])[None])]


def _sweep(risk: Any, tape: LayerTape, generator: torch.Generator) -> Iterator[dict]:
    sample = getattr(risk.module, "sample_labels", None)
    for _, batch in risk.batches():
        yield tape.watch(risk.module, sample(batch, generator) if sample else batch)

"""The softmax layer of many positions against autograd; WaveNet's last layer by itself against the whole network."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from quintet.common.optim import OptimizerConfig
from quintet.data.batches import AudioBatch
from quintet.papers.influence.influence import influence
from quintet.papers.influence.last_layer import split
from quintet.papers.influence.last_layer.split import at_last_layer
from quintet.papers.influence.risk import softmax_risk
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.risk.sampled import SampledHessian
from quintet.papers.influence.risk.softmax_risk import SoftmaxParts, SoftmaxRisk
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct, dense_hessian
from quintet.papers.wavenet.module import WaveNetModule
from quintet.papers.wavenet.network import WaveNetConfig

B, T, F, C = 7, 5, 3, 4


class Windows(NamedTuple):
    features: Tensor  # (B, T, F)
    targets: Tensor  # (B, T)
    share: Tensor  # (B, T)


class Layer(nn.Module):
    """A softmax layer over positions, without the short cut; the bias comes first among its parameters."""

    def __init__(self, bias: bool, l2: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.bias = nn.Parameter(torch.randn(C, dtype=torch.float64)) if bias else None
        self.weight = nn.Parameter(torch.randn(C, F, dtype=torch.float64))
        self.l2 = l2

    def example_losses(self, batch: Windows) -> Tensor:
        outputs_bct = nnf.linear(batch.features, self.weight, self.bias).mT
        return (nnf.cross_entropy(outputs_bct, batch.targets, reduction="none") * batch.share).sum(1)

    def regularisation(self) -> Tensor:
        return 0.5 * self.l2 * self.weight.square().sum()


class Quick(Layer):
    def softmax_parts(self, batch: Windows) -> SoftmaxParts:
        return SoftmaxParts(*batch, "weight", None if self.bias is None else "bias")


def windows(seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, T, F, generator=generator, dtype=torch.float64)
    share = torch.rand(B, T, generator=generator, dtype=torch.float64)
    share[1, 3:] = 0
    return Windows(features, torch.randint(C, (B, T), generator=generator), share)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def risks(request, monkeypatch):
    """(by autograd, by products of matrices), a few positions and columns at a time."""
    monkeypatch.setattr(softmax_risk, "ROWS", 4)
    monkeypatch.setattr(softmax_risk, "STRIPE", 6)
    data = Examples.of_batch(windows())
    quick = make_risk(Quick(request.param), data, batch_size=3)
    assert isinstance(quick, SoftmaxRisk)
    return EmpiricalRisk(Layer(request.param), data, batch_size=3), quick


def test_every_derivative_is_autograds(risks):
    plain, quick = risks
    vectors = torch.randn(6, plain.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = plain.read(plain.train, slice(0, 4))
    torch.testing.assert_close(quick.gradient(), plain.gradient())
    torch.testing.assert_close(quick.hvp(vectors), plain.hvp(vectors))
    torch.testing.assert_close(quick.batch_losses(batch), plain.batch_losses(batch))
    torch.testing.assert_close(quick.directional(batch, vectors), plain.directional(batch, vectors))
    torch.testing.assert_close(quick.example_gradients(batch), plain.example_gradients(batch))
    assert quick.value() == pytest.approx(plain.value())


def test_the_kronecker_eigenvalues_are_the_hessians_diagonal_in_their_basis(risks):
    plain, quick = risks
    factor, hessian = (
        quick.kronecker(),
        dense_hessian(plain) - torch.diag(plain.penalty_hvp(torch.ones_like(plain.theta)[None])[0]),
    )
    for c, f in ((0, 0), (3, 1), (2, 2)):
        direction = quick.vector(torch.outer(factor.basis_out[:, c], factor.basis_in[:, f])[None])[0]
        assert float(factor.eigenvalues[c, f]) == pytest.approx(float(direction @ hessian @ direction), abs=1e-12)


def test_a_sample_of_all_positions_is_the_hessian_and_solves_at_once(risks):
    plain, quick = risks
    inverse = ConjugateGradient(damping=0.2, tolerance=1e-10).prepare(quick)
    assert isinstance(inverse.preconditioner, SampledHessian)
    right = torch.randn(3, plain.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = inverse.solve(right)
    torch.testing.assert_close(found.vectors, Direct(damping=0.2).solve(plain, right).vectors)
    assert found.iterations <= 3  # one but for the preconditioner's floor


def test_a_sampled_hessian_has_the_hessian_as_its_mean(risks):
    _, quick = risks
    drawn = sum(quick.sampled_hessian(8, seed) for seed in range(100)) / 100
    wanted = quick.sampled_hessian(B * T, 0)
    assert (drawn - wanted).norm() < 0.1 * wanted.norm()


def test_without_curvature_there_is_still_a_root():
    """Two equal features and no L2 term: the Hessian is singular."""
    batch = windows()
    batch = batch._replace(features=batch.features[:, :, :1].expand(-1, -1, F).clone())
    risk = make_risk(Quick(True, l2=0.0), Examples.of_batch(batch))
    right = risk.gradient()[None]  # in the Hessian's range
    assert float(ConjugateGradient().solve(risk, right).relative_residual.max()) < 1e-6


@pytest.fixture(scope="module")
def wavenet():
    """(module, training windows, queries) of two speakers, the last window padded."""
    torch.manual_seed(0)
    config = WaveNetConfig(
        layers_per_stack=2, stacks=1, residual_channels=4, gate_channels=4, skip_channels=5, head_channels=3
    )
    data_info = {"sample_rate": 8000, "num_classes": 6, "speakers": ["a", "b"], "tags": [], "local_channels": 0,
             "hop_length": 0, "phones": []}  # fmt: skip
    module = WaveNetModule(config, OptimizerConfig(weight_decay=0.05), data_info).double().eval()
    length, chunk = module.receptive_field + 9, 9
    mask = torch.ones(8, chunk, dtype=torch.bool)
    mask[-1, 5:] = False
    audio = torch.randint(6, (8, length))
    batch = AudioBatch(audio, mask, torch.arange(8) % 2, None, None, None, torch.arange(8))
    return (
        module,
        Examples.of_batch(batch),
        Examples.of_batch(AudioBatch(*(None if p is None else p[5:] for p in batch))),
    )


LAST = "network.head.3.*"


def test_wavenets_last_layer_by_itself_gives_the_scores_of_the_whole_network(wavenet, monkeypatch):
    module, train, queries = wavenet
    solver = ConjugateGradient(damping=0.05, tolerance=1e-11)
    found = influence(module, train, queries, params=LAST, solver=solver)
    top, *_ = at_last_layer(module, LAST, train, queries)
    assert top is not module and isinstance(make_risk(top, at_last_layer(module, LAST, train)[1]), SoftmaxRisk)
    monkeypatch.setattr(split, "SPLITS", {})
    whole = influence(module, train, queries, params=LAST, solver=Direct(damping=0.05))
    for name in ("delta_test_loss_if_removed", "query_losses", "train_losses", "s_test"):
        wanted = getattr(whole, name)  # the module's own loss is of float32
        torch.testing.assert_close(getattr(found, name), wanted, check_dtype=False, rtol=1e-4, atol=1e-6)
    assert found.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5) and found.num_params == 3 * 6 + 6


def test_other_parameters_need_the_whole_network(wavenet):
    module, train, _ = wavenet
    for params in ("*", "network.head.*", ["network.head.3.*", "network.front.*"]):
        assert at_last_layer(module, params, train) == (module, train)
    part = make_risk(*at_last_layer(module, "network.head.3.weight", train), "network.head.3.weight")
    assert type(part) is EmpiricalRisk  # the bias is held, which the matrices do not know

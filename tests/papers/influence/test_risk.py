"""Derivatives of the risk by every route against autograd's dense ones, and the bad inputs."""

import pytest
import torch
from small_models import Awkward, Net, Softmax, data, dense, examples, slopes

from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig
from quintet.data.batches import ExampleBatch
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import LinearRisk, make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk

ROUTES = {
    "forward": (lambda: Net(), EmpiricalRisk, {"forward"}),
    "reverse": (lambda: Awkward(), EmpiricalRisk, {"reverse"}),
    "linear": (lambda: Softmax(linear=True), LinearRisk, None),
    "linear with bias": (lambda: Softmax(linear=True, bias=True), LinearRisk, None),
}


@pytest.fixture(params=ROUTES)
def case(request):
    torch.manual_seed(0)
    build, kind, mode = ROUTES[request.param]
    module = build()
    risk = make_risk(module, examples(), batch_size=7)
    assert type(risk) is kind and (mode is None or set(risk.derivatives.ad_mode.values()) == mode)
    return module, risk


def test_gradient_hessian_and_value(case):
    module, risk = case
    gradient, hessian = dense(module, data())
    vectors = torch.randn(4, risk.num_params, dtype=torch.float64)
    torch.testing.assert_close(risk.gradient(), gradient)
    torch.testing.assert_close(risk.hvp(vectors), vectors @ hessian)
    wanted = module.example_losses(data()).mean() + module.regularisation()
    assert risk.value() == pytest.approx(float(wanted.detach()))


def test_example_gradients_and_their_products(case):
    module, risk = case
    batch = data(5, 11)
    vectors = torch.randn(3, risk.num_params, dtype=torch.float64)
    torch.testing.assert_close(risk.example_gradients(batch), slopes(module, batch))
    torch.testing.assert_close(risk.directional(batch, vectors), vectors @ slopes(module, batch).T)
    many = torch.randn(9, risk.num_params, dtype=torch.float64)  # another route than a few
    torch.testing.assert_close(risk.directional(batch, many), many @ slopes(module, batch).T)
    torch.testing.assert_close(risk.batch_losses(batch), module.example_losses(batch).detach())


@pytest.mark.parametrize("bias", [False, True])
def test_linear_risk_hessian_and_exact_diagonal_in_its_eigenbasis(bias):
    torch.manual_seed(0)
    module = Softmax(linear=True, bias=bias, l2=0.0)
    risk = make_risk(module, examples(), batch_size=7)
    hessian = dense(module, data())[1]
    torch.testing.assert_close(risk.hessian(), hessian)
    factor = risk.kronecker()
    outer = torch.einsum("co,fi->cfoi", factor.basis_out, factor.basis_in).flatten(2).flatten(0, 1)
    order = risk.matrix(torch.arange(risk.num_params, dtype=torch.float64)[None]).flatten().long()
    rotated = outer.T @ hessian[order][:, order] @ outer
    torch.testing.assert_close(rotated.diagonal(), factor.eigenvalues.flatten())


def test_only_the_chosen_parameters_move():
    module = Net()
    risk = EmpiricalRisk(module, examples(), "layer.*")
    whole = EmpiricalRisk(module, examples(), "*")
    assert risk.selection.names == ["layer.weight", "layer.bias"] and risk.num_params == 21
    place = slice(whole.selection.place("layer.weight").start, whole.selection.place("layer.bias").stop)
    torch.testing.assert_close(risk.gradient(), whole.gradient()[place])


def test_an_optimisers_weight_decay_counts_as_its_l2_term():
    module = Net()
    module.optimizer_config = OptimizerConfig(name="adam", weight_decay=0.3)
    decayed, plain = EmpiricalRisk(module, examples()), EmpiricalRisk(Net(), examples())
    torch.testing.assert_close(decayed.gradient(), plain.gradient() + 0.3 * plain.theta)
    module.optimizer_config = OptimizerConfig(name="adamw", weight_decay=0.3)
    torch.testing.assert_close(EmpiricalRisk(module, examples()).gradient(), plain.gradient())


def test_a_wrong_tangent_is_noticed():
    """torch's embedding has no gradient in its padding row, but a tangent; and padding is not in the first example."""
    module = Padded()
    batch = ExampleBatch(torch.tensor([[1, 2], [1, 0]]), torch.tensor([0, 1]), torch.arange(2))
    risk = EmpiricalRisk(module, Examples.of_batch(batch))
    assert risk.derivatives.ad_mode["directional"] == "reverse" == risk.derivatives.ad_mode["hvp"]
    risk = EmpiricalRisk(module, Examples.of_batch(ExampleBatch(*(part[:1] for part in batch))))
    assert risk.derivatives.ad_mode["directional"] == "forward"


class Padded(Softmax):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 5, padding_idx=0).double()

    def forward(self, inputs):
        return self.layer(self.embedding(inputs).sum(1)).square()


def test_dropout_is_off():
    module = torch.nn.Sequential(torch.nn.Dropout(0.5))
    module.example_losses = lambda batch: batch.inputs.sum(1)
    module.weight = torch.nn.Parameter(torch.ones(1))
    EmpiricalRisk(module.train(), examples())
    assert not module.training


def test_bad_input():
    with pytest.raises(UserError, match="Linear has no example_losses"):
        EmpiricalRisk(torch.nn.Linear(2, 2), examples())
    with pytest.raises(UserError, match=r"params=\['head\.\*'\] matches no parameter: choose from layer\.weight"):
        EmpiricalRisk(Softmax(), examples(), "head.*")
    with pytest.raises(UserError, match=r"protocol\.queries has index 40: the batch split has 40 examples"):
        Examples(examples().source, "batch", [3, 40], name="protocol.queries")
    with pytest.raises(UserError, match="queries is empty"):
        Examples(examples().source, "batch", [])


def test_batches_come_in_order_and_ranks_share_them():
    some = Examples(examples().source, "batch", [5, 3, 8, 1, 2])
    seen = [batch.index.tolist() for _, batch in some.batches(2, torch.float64)]
    assert seen == [[5, 3], [8, 1], [2]]
    ranks = [[p for p, _ in some.batches(2, torch.float64, rank=r, world=2)] for r in range(2)]
    assert ranks == [[slice(0, 2), slice(4, 5)], [slice(2, 4)]]
    assert next(some.batches(2, torch.float32))[1].inputs.dtype == torch.float32


def test_fingerprints_tell_contents_and_positions_apart():
    changed = ExampleBatch(data().inputs + 1, data().labels, data().index)
    found = {e.fingerprint() for e in (examples(), Examples.of_batch(changed), examples(count=39))}
    assert len(found) == 3 and examples().fingerprint() in found

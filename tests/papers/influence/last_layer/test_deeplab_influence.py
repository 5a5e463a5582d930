"""EK-FAC finds the layers of the head; the classifier by itself."""

import pytest
import torch

from quintet.data.batches import SegmentationBatch
from quintet.papers.deeplab.module import DeepLabModule
from quintet.papers.influence.influence import influence
from quintet.papers.influence.last_layer import split
from quintet.papers.influence.last_layer.split import at_last_layer
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.kronecker import LayerTape
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.softmax_risk import SoftmaxRisk
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

FACTS = {"num_classes": 3, "classes": ["background", "cat", "dog"]}
BACKBONE = {"name": "resnet18", "output_stride": 16, "weights": None}


class Chosen:
    """The head's parameters, as influence functions select them."""

    def __init__(self, module):
        self.names = [name for name, _ in module.named_parameters() if name.startswith("network.head")]


def test_every_branch_is_watched_and_its_gradient_is_the_losss():
    torch.manual_seed(0)
    module = DeepLabModule({"head": "aspp_s"}, BACKBONE, {"name": "sgd"}, FACTS).eval()
    labels = torch.randint(0, 3, (2, 33, 33))
    batch = SegmentationBatch(torch.rand(2, 3, 33, 33), labels, torch.full((2, 2), 33), torch.arange(2))
    calls = LayerTape(module, Chosen(module)).watch(module, batch)
    assert set(calls) == {f"network.head.branches.{n}.classifier" for n in range(4)}
    module.example_losses(batch).sum().backward()
    for n, branch in enumerate(module.network.head.branches):
        [(inputs_btf, slopes_bto)] = calls[f"network.head.branches.{n}.classifier"]
        found = torch.einsum("bto,btf->of", slopes_bto, inputs_btf)
        assert torch.allclose(found[:, :-1], branch.classifier.weight.grad.flatten(1), rtol=1e-3, atol=1e-5)
        assert torch.allclose(found[:, -1], branch.classifier.bias.grad, rtol=1e-3, atol=1e-5)


LAST = "network.head.classifier.*"


@pytest.fixture(scope="module")
def images():
    """Five of a size that is off the grid, with pixels without a label; one has none at all."""
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (5, 40, 37))
    labels[:, :18], labels[4] = 255, 255
    return Examples.of_batch(
        SegmentationBatch(torch.rand(5, 3, 40, 37), labels, torch.tensor([[40, 37]] * 5), torch.arange(5))
    )


SLOW = pytest.param({"head": "none"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("network", [SLOW, {"head": "large_fov", "form": "vgg", "channels": 8}])
def test_the_classifier_by_itself_gives_the_scores_of_the_whole_network(images, network, monkeypatch):
    torch.manual_seed(0)
    module = DeepLabModule(network, BACKBONE, {"name": "sgd"}, FACTS, weight_decay=0.1).double().eval()
    with torch.no_grad():
        module.network.head.classifier.weight.mul_(30)  # scores that matter
    queries = Examples(images.source, "batch", [1, 3])
    found = influence(module, images, queries, params=LAST, solver=ConjugateGradient(damping=0.05, tolerance=1e-11))
    top, inside = at_last_layer(module, LAST, images)
    assert isinstance(make_risk(top, inside, LAST), SoftmaxRisk)
    monkeypatch.setattr(split, "SPLITS", {})
    whole = influence(module, images, queries, params=LAST, solver=Direct(damping=0.05))
    assert float(whole.delta_test_loss_if_removed.abs().min(1).values.max()) > 1e-5  # also of the one without labels
    for name in ("delta_test_loss_if_removed", "query_losses", "train_losses", "s_test"):
        wanted = getattr(whole, name)  # the module's own loss is of float32
        tolerance = 1e-4 * float(wanted.abs().max())
        torch.testing.assert_close(getattr(found, name), wanted, check_dtype=False, rtol=1e-3, atol=tolerance)
    assert found.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


@pytest.mark.parametrize(
    ("network", "params"),
    [
        ({"head": "none"}, "network.head.*.weight"),
        ({"head": "none"}, [LAST, "network.backbone.*"]),
        ({"head": "none", "scales": [1.0, 0.5]}, LAST),
        ({"head": "aspp_s", "form": "vgg", "channels": 8}, "network.head.branches.0.classifier.*"),
        ({"head": "large_fov"}, LAST),  # 3 x 3
    ],
)
def test_what_is_no_softmax_at_last_layer_needs_the_whole_network(images, network, params):
    module = DeepLabModule(network, BACKBONE, {"name": "sgd"}, FACTS)
    assert at_last_layer(module, params, images) == (module, images)

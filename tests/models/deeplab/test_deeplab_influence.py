"""EK-FAC finds the layers of the head, whichever way the head computes its sum."""

import torch

from quintet.data.batches import SegmentationBatch
from quintet.models.deeplab.module import DeepLabModule
from quintet.models.influence.kronecker import LayerTape


class Chosen:
    """The head's parameters, as influence functions select them."""

    def __init__(self, module):
        self.names = [name for name, _ in module.named_parameters() if name.startswith("network.head")]


def test_every_branch_is_watched_and_its_gradient_is_the_losss():
    torch.manual_seed(0)
    classes = ["background", "cat", "dog"]
    backbone = {"name": "resnet18", "output_stride": 16, "weights": None}
    module = DeepLabModule({"head": "aspp_s"}, backbone, {"name": "sgd"}, {"num_classes": 3, "classes": classes}).eval()
    labels = torch.randint(0, 3, (2, 33, 33))
    batch = SegmentationBatch(torch.rand(2, 3, 33, 33), labels, torch.full((2, 2), 33), torch.arange(2))
    calls = LayerTape(module, Chosen(module)).watch(module, batch)
    assert set(calls) == {f"network.head.branches.{n}.fc8" for n in range(4)}
    module.example_losses(batch).sum().backward()  # the fused way: nothing is watched any more
    for n, branch in enumerate(module.network.head.branches):
        [(inputs_btf, slopes_bto)] = calls[f"network.head.branches.{n}.fc8"]
        found = torch.einsum("bto,btf->of", slopes_bto, inputs_btf)
        assert torch.allclose(found[:, :-1], branch["fc8"].weight.grad.flatten(1), rtol=1e-3, atol=1e-5)
        assert torch.allclose(found[:, -1], branch["fc8"].bias.grad, rtol=1e-3, atol=1e-5)

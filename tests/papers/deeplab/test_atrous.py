"""The paper's claim: with strides replaced by holes, responses at the shared positions are those of before."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from quintet.common.errors import UserError
from quintet.papers.deeplab.atrous import strides, to_output_stride


def body(name):
    """The convolutional part of a torchvision network in float64, with statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None)
    kept = [m for n, m in network.named_children() if n not in ("avgpool", "classifier", "fc", "head")]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return nn.Sequential(*kept).double().eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("vgg16", 65), ("vgg16", 72), ("resnet18", 65), ("resnet18", 96), ("resnet50", 65), ("resnet101", 65)),
        *(("mobilenet_v2", 65), ("mobilenet_v2", 96), ("shufflenet_v2_x0_5", 65), ("convnext_tiny", 70)),
    ],
)
@torch.no_grad()
def test_equal_at_every_shared_position_borders_included(name, size):
    network = body(name)
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    strided = network(images)
    assert strides(network)[1] == 32 and strided.std() > 0
    for output_stride in (16, 8):
        dense = to_output_stride(deepcopy(network), output_stride)
        responses, step = dense(images), 32 // output_stride
        assert responses.shape[-1] > strided.shape[-1]
        assert torch.allclose(
            responses[..., ::step, ::step], strided, rtol=1e-9, atol=1e-12 * float(strided.abs().max())
        )
        assert {k: v.shape for k, v in dense.state_dict().items()} == {
            k: v.shape for k, v in network.state_dict().items()
        }


def test_rates_of_resnet101_are_those_of_the_paper():
    network = to_output_stride(body("resnet101"), 8)
    dilations = {
        n: m.dilation[0] for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3
    }
    inside = [[d for name, d in dilations.items() if name.startswith(f"{stage}.")] for stage in (4, 5, 6, 7)]
    # a stage's first convolution still reads the finer map, as torchvision's own option does it
    assert [set(stage) for stage in inside[:2]] == [{1}, {1}]
    assert inside[2] == [1] + [2] * 22 and inside[3] == [2] + [4] * 2


@torch.no_grad()
def test_same_as_torchvisions_own_dilation():
    torch.manual_seed(0)
    ours = body("resnet50")
    theirs = models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).double().eval()
    kept = nn.Sequential(*list(theirs.children())[:-2])
    kept.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 80, dtype=torch.float64)
    assert torch.allclose(to_output_stride(ours, 8)(images), kept(images), rtol=1e-10)


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.MaxPool2d(2, 2)],
        [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 3, padding=1)],
        [nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 2, padding="valid")],
        [
            nn.AvgPool2d(2),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.Conv2d(4, 4, 3, padding="same"),
        ],
    ],
    ids=["stride_4_and_dilated", "padded_pools", "no_padding", "padding_same"],
)
@torch.no_grad()
def test_any_network_of_layers(layers):
    network = net(*layers)
    own, images = strides(network)[1], -torch.rand(2, 3, 61, 70, dtype=torch.float64)
    strided = network(images)
    assert own == 8 or own == 4
    dense = to_output_stride(deepcopy(network), 2)(images)
    assert torch.allclose(dense[..., :: own // 2, :: own // 2], strided, rtol=1e-9)


@torch.no_grad()
def test_mirrored_padding_holds_inside():
    convolutions = [nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")]
    network = net(*convolutions)
    images = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    dense = to_output_stride(deepcopy(network), 1)(images)
    assert torch.allclose(dense[..., ::2, ::2][..., :-1, :-1], network(images)[..., :-1, :-1], rtol=1e-9)


class Sliced(nn.Module):
    """Strides that no layer makes."""

    def forward(self, x):
        return x[..., ::2, ::2]


class Twice(nn.Module):
    """One convolution at two strides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x))


class Flat(nn.Module):
    """A classifier of a fixed size."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, x):
        return self.linear(F.relu(x).flatten(1))


@pytest.mark.parametrize(
    ("network", "output_stride", "message"),
    [
        (lambda: net(nn.Conv2d(3, 4, 3, 2, 1)), 4, r"^here=4: the network's own is 2, give that or less"),
        (lambda: net(nn.Conv2d(3, 4, 3, 2, 1)), 0, r"^here=0: give 1 or more"),
        (
            lambda: net(nn.Conv2d(3, 4, 3, 3), nn.Conv2d(4, 4, 3, 2)),
            2,
            r"here=2 does not fit layer 0, from stride 1 to 3",
        ),
        (lambda: net(nn.AvgPool2d(2), nn.AvgPool2d(2)), 1, r"holes in the average pooling 1"),
        (lambda: net(nn.Conv2d(3, 4, 3, (2, 1)), nn.Conv2d(4, 4, 3, 2)), 1, r"layer 0 has the stride 2 x 1"),
        (lambda: net(Sliced(), nn.Conv2d(3, 4, 3, 2)), 1, r"here=1: 2 is reached; what strides in this network"),
        (lambda: net(Twice()), 2, r"layer 0\.conv is used at strides 1 and 2"),
        (lambda: net(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 4, padding="same")), 1, r"layer 1 pads an even kernel"),
        (lambda: net(Flat()), 1, r"does not take images of any size"),
    ],
)
def test_what_cannot_be(network, output_stride, message):
    with pytest.raises(UserError, match=message) as error:
        to_output_stride(network(), output_stride, "here")
    assert "\n" not in str(error.value)

"""Causality, receptive field, a hand computation in NumPy, conditioning lengths, and no dead parameter."""

import itertools

import numpy as np
import pytest
import torch

from quintet.common.errors import UserError
from quintet.papers.wavenet.conditioning import TransposedUpsampling, upsampling_strides
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig, describe_receptive_field

SMALL = {
    "layers_per_stack": 3,
    "stacks": 2,
    "residual_channels": 6,
    "gate_channels": 5,
    "skip_channels": 7,
    "head_channels": 8,
}
CONTEXT = {"layers_per_stack": 2, "stacks": 1, "kernel_size": 2, "residual_channels": 4, "pool": 5, "channels": 3}
Q, HOP = 16, 6


def build(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {k: changes.pop(k) for k in ("num_speakers", "num_tags", "local_channels", "num_phones") if k in changes}
    hop = HOP if sizes.get("local_channels") else 0
    return WaveNet(WaveNetConfig(**{**SMALL, **changes}), num_classes=Q, hop_length=hop, **sizes).eval()


def conditions(network, batch, length):
    given = {}
    if network.global_conditioning.num_speakers:
        given["speaker_b"] = torch.arange(batch) % network.global_conditioning.num_speakers
    if network.global_conditioning.num_tags:
        given["tags_bn"] = torch.randint(0, 2, (batch, network.global_conditioning.num_tags)).float()
    if network.upsampling is not None:
        given["local_bft"] = torch.randn(batch, 4, -(-length // HOP))
    return given


VARIANTS = {
    "plain": {},
    "kernel 1": {"kernel_size": 1},
    "kernel 3, front 3": {"kernel_size": 3, "front_kernel_size": 3},
    "scaled, weight norm": {"residual_scaling": True, "weight_norm": True},
    "speaker, tags": {"num_speakers": 3, "num_tags": 4},
    "speaker embedding": {"num_speakers": 3, "speaker_embedding": 2},
    "local": {"local_channels": 4},
    "local, repeated": {"local_channels": 4, "upsample": "repeat"},
    "context": {"context_stack": CONTEXT},
    "everything": {"num_speakers": 2, "num_tags": 2, "local_channels": 4, "context_stack": CONTEXT, "kernel_size": 3},
}


@pytest.fixture(params=VARIANTS, ids=str)
def network(request):
    return build(**VARIANTS[request.param])


def test_what_comes_later_moves_no_logit_by_one_bit(network):
    length, batch = 70, 2
    classes, given = torch.randint(0, Q, (batch, length)), conditions(network, batch, length)
    with torch.no_grad():
        before = network(classes, **given)
        for time in (0, 1, 33, 34, 35, length - 1):
            changed = classes.clone()
            changed[:, time] = (changed[:, time] + Q // 2) % Q
            after = network(changed, **given)
            assert torch.equal(before[..., :time], after[..., :time])
            assert not torch.equal(before[..., time], after[..., time])


def test_receptive_field_is_exact(network):
    """One sample further back never matters; the oldest one inside does, at the longest phase of the pooling."""
    field = network.receptive_field
    length, moved = field + 2 * CONTEXT["pool"], set()
    classes, given = torch.randint(0, Q, (1, length)), conditions(network, 1, length)
    network, given = network.double(), {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        before = network(classes, **given)
        for time in range(2 * CONTEXT["pool"]):
            changed = classes.clone()
            changed[0, time] = (changed[0, time] + 3) % Q
            difference = (network(changed, **given) != before).any(1)[0]
            moved.add(int(difference.nonzero().max()) - time + 1)
    assert max(moved) == field
    assert network.context is not None or moved == {field}


def test_receptive_field_of_the_papers_sizes():
    def field(stacks):
        return WaveNetConfig(stacks=stacks, residual_channels=1, gate_channels=1, skip_channels=1, head_channels=1)

    # (k - 1) * sum(d) + 1, and one more for the front convolution of width 2
    assert [WaveNet(field(s)).receptive_field for s in (3, 4, 5)] == [3071, 4094, 5117]
    assert describe_receptive_field(WaveNet(field(5)), 16000) == ("receptive field 5117 samples = 319.8 ms at 16000 Hz")


@pytest.mark.parametrize("kernel", [2, 3])
def test_two_layers_by_hand(kernel):
    """The equations written out sample by sample in NumPy."""
    network = build(layers_per_stack=2, stacks=1, kernel_size=kernel, num_speakers=3).double()
    classes, speaker = torch.randint(0, Q, (1, 12)), torch.tensor([2])
    p = {name: value.detach().numpy() for name, value in network.named_parameters()}
    bias = p["global_conditioning.speaker.weight"][2].reshape(2, -1)
    history = [*([Q // 2] * (network.config.front_kernel_size - 1)), *classes[0].tolist()]
    x = [p["front.weight"][0][a] + p["front.weight"][1][b] for a, b in itertools.pairwise(history)]
    skips = np.tile(p["stack.skip.bias"], (12, 1))
    for layer, dilation in enumerate((1, 2)):
        w, b = p[f"stack.blocks.{layer}.filter_gate.weight"], p[f"stack.blocks.{layer}.filter_gate.bias"]
        z = []
        for t in range(12):
            a = b + bias[layer]
            for tap in range(kernel):
                past = t - (kernel - 1 - tap) * dilation
                a = a + (w[..., tap] @ x[past] if past >= 0 else 0)
            z.append(np.tanh(a[:5]) / (1 + np.exp(-a[5:])))
            skips[t] += p["stack.skip.weight"][:, 5 * layer : 5 * layer + 5, 0] @ z[t]
        if layer == 0:
            r, rb = p["stack.blocks.0.residual.weight"][..., 0], p["stack.blocks.0.residual.bias"]
            x = [x[t] + r @ z[t] + rb for t in range(12)]
    hidden = np.maximum(np.maximum(skips, 0) @ p["head.1.weight"][..., 0].T + p["head.1.bias"], 0)
    expected = hidden @ p["head.3.weight"][..., 0].T + p["head.3.bias"]
    assert np.allclose(network(classes, speaker)[0].T.detach().numpy(), expected, atol=1e-12)


def test_the_last_logits_alone_are_the_same(network):
    network, classes = network.double(), torch.randint(0, Q, (2, 90))
    given = {k: v.double() if v.is_floating_point() else v for k, v in conditions(network, 2, 90).items()}
    whole = network(classes, **given)
    for last in (1, 17, 90):
        assert torch.allclose(network(classes, **given, last=last), whole[..., -last:], atol=1e-12)


@pytest.mark.parametrize("hop", [1, 2, 7, 80, 200, 256, 275])
def test_upsampling_gives_hop_samples_a_frame(hop):
    assert np.prod(upsampling_strides(hop)) == hop
    assert TransposedUpsampling(3, hop, 4)(torch.randn(2, 3, 9)).shape == (2, 4, 9 * hop)


def test_a_frame_stays_with_its_own_samples():
    layer, frames = TransposedUpsampling(2, 20, 4).eval(), torch.zeros(1, 2, 11)
    layer = layer.requires_grad_(False)
    quiet = layer(frames)
    frames[..., 5] = 1
    moved = (layer(frames) - quiet).abs().sum(1)[0]
    centre = float((moved * torch.arange(220)).sum() / moved.sum())
    assert 100 <= centre < 120 and moved[:60].max() == 0 and moved[160:].max() == 0


def test_every_parameter_gets_a_gradient(network):
    classes = torch.randint(0, Q, (3, 80))
    network(classes, **conditions(network, 3, 80)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_phone_frames_are_counted_from_the_end():
    network = build(num_phones=5, recognition={"channels": 6, "layers": 2, "frame": 20})
    classes = torch.randint(0, Q, (2, 87))
    logits, phones = network.forward_with_phones(classes)
    assert logits.shape == (2, Q, 87) and phones.shape == (2, 5, 4)
    assert torch.equal(phones, network.frame_logits(classes))
    assert torch.allclose(network.forward_with_phones(classes, last=80)[1], phones, atol=1e-6)
    (logits.square().sum() + phones.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"upsample": "cubic"}, "model.network.upsample"),
        ({"kernel_size": 0}, "model.network.kernel_size"),
        ({"context_stack": {"pool": 4}}, "model.network.context_stack"),
        ({"recognition": {"channels": 4, "layers": 1}}, "no phones"),
    ],
)
def test_a_wrong_configuration_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        build(**changes)


def test_missing_and_short_conditioning_is_named():
    classes = torch.randint(0, Q, (1, 30))
    with pytest.raises(UserError, match="speaker"):
        build(num_speakers=3)(classes)
    with pytest.raises(UserError, match="local"):
        build(local_channels=4)(classes)
    with pytest.raises(UserError, match="hop_length"):
        build(local_channels=4)(classes, local_bft=torch.randn(1, 4, 4))
    with pytest.raises(UserError, match="recognition"):
        build().frame_logits(classes)

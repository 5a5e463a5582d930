"""Every back-end against the parallel forward, and against each other."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.common.errors import UserError
from quintet.papers.wavenet.generate import generate
from quintet.papers.wavenet.generate.compiled import NumbaBackend
from quintet.papers.wavenet.generate.plan import make_plan
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig

SMALL = {
    "layers_per_stack": 3,
    "stacks": 2,
    "residual_channels": 12,
    "gate_channels": 10,
    "skip_channels": 20,
    "head_channels": 24,
}
CONTEXT = {"layers_per_stack": 2, "stacks": 1, "kernel_size": 2, "residual_channels": 8, "pool": 5, "channels": 4}
Q, HOP = 40, 6


def build(*, conditioned=False, local=False, seed=0, sizes=None, **changes):
    torch.manual_seed(seed)
    sizes = (sizes or {}) | ({"num_speakers": 3, "num_tags": 2} if conditioned else {})
    sizes |= {"local_channels": 4, "hop_length": HOP} if local else {}
    return WaveNet(WaveNetConfig(**{**SMALL, **changes}), num_classes=Q, **sizes)


def inputs(network, batch, length):
    call = {}
    if network.global_conditioning.num_speakers:
        call["speaker_b"], call["tags_bn"] = torch.arange(batch) % 3, torch.randint(0, 2, (batch, 2)).float()
    if network.upsampling is not None:
        call["local_bft"] = torch.randn(batch, 4, -(-length // HOP))
    return call


def forward_logits(network, classes_bn, prompt_bt, call):
    """Silence, prompt and samples through the parallel network; the silence starts on a frame border."""
    silence = -(-(network.receptive_field + 1) // HOP) * HOP if "local_bft" in call else network.receptive_field + 1
    parts = [torch.full((len(classes_bn), silence), Q // 2), classes_bn]
    parts[1:1] = [] if prompt_bt is None else [prompt_bt]
    if "local_bft" in call:
        call = {**call, "local_bft": F.pad(call["local_bft"], (silence // HOP, 0))}
    with torch.no_grad():
        return network.eval()(torch.cat(parts, dim=1)[:, :-1], **call)[..., -classes_bn.size(1) :]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    backend=st.sampled_from(["eager", "numba"]),
    kernel=st.integers(1, 3),
    front=st.integers(1, 3),
    conditioned=st.booleans(),
    local=st.sampled_from([None, "transposed", "repeat"]),
    context=st.sampled_from([None, CONTEXT]),
    switches=st.booleans(),
    batch=st.integers(1, 4),
    prompt=st.integers(0, 11),
)
def test_logits_are_those_of_the_parallel_forward(
    backend, kernel, front, conditioned, local, context, switches, batch, prompt
):
    network = build(
        conditioned=conditioned,
        local=local is not None,
        upsample=local or "repeat",
        kernel_size=kernel,
        front_kernel_size=front,
        context_stack=context,
        residual_scaling=switches,
        weight_norm=switches,
    )
    call = inputs(network, batch, prompt + 30)
    prompt_bt = torch.randint(0, Q, (batch, prompt)) if prompt else None
    classes, logits = generate(
        network, 30, prompt_bt=prompt_bt, batch_size=batch, backend=backend, return_logits=True, **call
    )
    assert classes.shape == (batch, 30) and logits.shape == (batch, Q, 30)
    assert (logits - forward_logits(network, classes, prompt_bt, call)).abs().max() < 1e-4


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_back_ends_draw_the_same_samples(monkeypatch, kernel, batch):
    """Long enough to cross a span of the plan, with sharp distributions so that a wrong queue would show."""
    monkeypatch.setattr("quintet.papers.wavenet.generate.plan.SPAN", 100)
    network = build(kernel_size=kernel)
    with torch.no_grad():
        network.head[3].weight *= 20
    drawn = {b: generate(network, 330, batch_size=batch, seed=5, backend=b) for b in ("eager", "numba")}
    assert torch.equal(drawn["eager"], drawn["numba"])
    assert len(drawn["eager"].unique()) > 10
    assert not torch.equal(drawn["numba"], generate(network, 330, batch_size=batch, seed=6, backend="numba"))


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_and_two_threads_agree_with_the_forward(threads):
    network = build(residual_channels=20, skip_channels=80, head_channels=70).eval()
    with torch.no_grad():
        plan = make_plan(network, 200, 1, None, None, None, None)
        uniforms, backend = torch.rand(1, 200, dtype=torch.float64), NumbaBackend(plan, threads)
        for n in range(0, 200, 50):
            start = plan.start + n
            backend.run(start, start + 50, plan.bias(start, start + 50), uniforms[:, n : n + 50], 1.0, False)
    assert torch.equal(plan.classes_bt[:, -200:], make_reference(network, uniforms))


def make_reference(network, uniforms_bn):
    """The slow way: one whole parallel forward per sample."""
    classes, field = torch.full((1, network.receptive_field + 1), Q // 2), network.receptive_field
    with torch.no_grad():
        for n in range(uniforms_bn.size(1)):
            logits = network(classes[:, -field - 1 :], last=1)[0, :, 0].double()
            drawn = torch.searchsorted(logits.softmax(0).cumsum(0), uniforms_bn[0, n : n + 1], right=True)
            classes = torch.cat([classes, drawn.clamp(max=Q - 1)[None]], dim=1)
    return classes[:, -uniforms_bn.size(1) :]


@pytest.mark.parametrize("backend", ["eager", "numba"])
def test_temperature(backend):
    network = build()
    classes, logits = generate(network, 40, batch_size=2, temperature=0, backend=backend, return_logits=True)
    assert torch.equal(classes, logits.argmax(1))
    with torch.no_grad():
        for layer in (network.head[3].weight, network.head[3].bias):
            layer.zero_()
        network.head[3].bias[:4] = torch.tensor([0.0, 1.0, 2.0, 3.0]) * 3
        network.head[3].bias[4:] = -1e4
    drawn = generate(network, 200, batch_size=20, temperature=3.0, seed=1, backend=backend).flatten()
    expected = torch.softmax(torch.arange(4.0), 0)  # 3 * (0, 1, 2, 3) / 3
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 4000, expected, atol=0.03)


def test_eager_leaves_the_network_as_it_was():
    network = build().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generate(network, 5, backend="eager")
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"backend": "fast"}, "choose auto, eager, numba, cuda_graph"),
        ({"backend": "cuda_graph"}, "needs the network on a CUDA GPU"),
        ({"temperature": -1.0}, "temperature"),
        ({"batch_size": 3, "prompt_bt": torch.zeros(2, 4, dtype=torch.int64)}, "differ"),
        ({"prompt_bt": torch.full((1, 4), Q)}, "prompt"),
    ],
)
def test_a_wrong_call_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        generate(build(), 3, **call)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("local", [False, True])
def test_the_cuda_graph_is_the_eager_step(local):
    network = build(conditioned=True, local=local).cuda()
    call = inputs(network, 3, 60)
    eager, graph = (generate(network, 60, backend=b, return_logits=True, **call) for b in ("eager", "cuda_graph"))
    assert torch.equal(eager[0], graph[0]) and (eager[1] - graph[1]).abs().max() < 1e-4

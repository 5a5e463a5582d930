"""The network calls its convolutions as modules, so that hooks (EK-FAC, FLOP counters) see every one of them."""

import pytest
import torch
from torch import nn

from quintet.common.errors import UserError
from quintet.data.batches import AudioBatch
from quintet.papers.influence.influence import influence
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.ekfac import Ekfac
from quintet.papers.wavenet.module import WaveNetModule

DATA_INFO = {
    "sample_rate": 16000,
    "num_classes": 16,
    "speakers": [],
    "tags": [],
    "local_channels": 0,
    "hop_length": 0,
    "phones": [],
}
TINY = {
    "layers_per_stack": 2,
    "stacks": 1,
    "residual_channels": 4,
    "gate_channels": 4,
    "skip_channels": 8,
    "head_channels": 8,
}
CONTEXT_STACK = {"layers_per_stack": 2, "stacks": 1, "kernel_size": 2, "residual_channels": 4, "pool": 4, "channels": 3}
EXAMPLES, LENGTH, CHUNK = 12, 24, 8


class RandomAudio:
    """A data module of random classes."""

    def num_examples(self, split: str) -> int:
        return EXAMPLES

    def example_batch(self, split: str, indices: list[int]) -> AudioBatch:
        generator = torch.Generator().manual_seed(3)
        audio = torch.randint(0, 16, (EXAMPLES, LENGTH), generator=generator)[indices]
        mask = torch.ones(len(indices), CHUNK, dtype=torch.bool)
        return AudioBatch(audio, mask, None, None, None, None, torch.tensor(indices))


def tiny_module() -> WaveNetModule:
    torch.manual_seed(0)
    return WaveNetModule(TINY, {}, DATA_INFO, conditions=[]).eval()


def influence_of(params, solver):
    data = RandomAudio()
    return influence(
        tiny_module(), Examples(data, "train"), Examples(data, "train", [0, 1]), params=params, solver=solver
    )


def test_every_convolution_fires_its_forward_hook():
    network = {"context_stack": CONTEXT_STACK, "recognition": {"channels": 4, "layers": 2, "frame": 4}}
    data_info = DATA_INFO | {"local_channels": 3, "hop_length": 4, "phones": ["sil", "aa"]}
    module = WaveNetModule(TINY | network, {}, data_info, conditions=["local"])
    convolutions = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    }
    fired = set()
    for name, layer in convolutions.items():
        layer.register_forward_hook(lambda *_, name=name: fired.add(name))
    batch = RandomAudio().example_batch("train", [0, 1])
    batch = batch._replace(local=torch.randn(2, 3, LENGTH // 4), phones=torch.zeros(2, 2, dtype=torch.int64))
    module.example_losses(batch).sum().backward()
    assert len(convolutions) == 16 and fired == set(convolutions)


@pytest.mark.parametrize(
    "params",
    [
        "network.head.1.*",
        "network.stack.blocks.0.filter_gate.*",
        "network.stack.*",
        ["network.stack.*", "network.head.*"],
    ],
)
def test_ekfac_works_on_inner_layers(params):
    result = influence_of(params, Ekfac(damping=0.1))
    assert result.delta_test_loss_if_removed.abs().max() > 0 and result.relative_residual.isfinite().all()


def test_ekfac_names_the_only_layer_that_it_does_not_cover():
    """The front convolution is a table look-up and not a Conv1d."""
    with pytest.raises(UserError, match=r"not network\.front\.weight: choose"):
        influence_of("network.*", Ekfac(damping=0.1))


@pytest.mark.parametrize("params", ["network.head.1.*", "network.stack.blocks.0.filter_gate.*"])
def test_conjugate_gradients_with_the_ekfac_preconditioner(params):
    solver = ConjugateGradient(damping=5.0, preconditioner="ekfac", tolerance=1e-4)
    assert float(influence_of(params, solver).relative_residual.max()) < 1e-3


def test_conjugate_gradients_on_the_whole_network():
    solver = ConjugateGradient(damping=5.0, preconditioner="none", tolerance=1e-4)
    assert float(influence_of("network.*", solver).relative_residual.max()) < 1e-3

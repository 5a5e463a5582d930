"""Every layer is called as a module, so that hooks, and with them EK-FAC, see it."""

import pytest
import torch
from torch import nn

from quintet.data.batches import AudioBatch
from quintet.papers.influence.influence import influence
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.ekfac import Ekfac
from quintet.papers.wavenet.module import WaveNetModule
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig

INFO = {"sample_rate": 16000, "num_classes": 16, "speakers": [], "tags": [], "local_channels": 0, "hop_length": 0,
        "phones": []}  # fmt: skip
NETWORK = {"layers_per_stack": 2, "stacks": 1, "residual_channels": 4, "gate_channels": 4, "skip_channels": 8,
           "head_channels": 8}  # fmt: skip


class Windows:
    """Twelve random windows."""

    def num_examples(self, split):
        return 12

    def example_batch(self, split, indices):
        audio = torch.randint(0, 16, (12, 24), generator=torch.Generator().manual_seed(3))[indices]
        mask = torch.ones(len(indices), 8, dtype=torch.bool)
        return AudioBatch(audio, mask, None, None, None, None, torch.tensor(indices))


def test_every_layer_is_called_once():
    context = {"layers_per_stack": 2, "stacks": 1, "kernel_size": 2, "residual_channels": 4, "pool": 3, "channels": 2}
    config = WaveNetConfig(**NETWORK, context_stack=context, recognition={"channels": 4, "layers": 2, "frame": 4})
    sizes = {"num_speakers": 2, "num_tags": 3, "local_channels": 2, "hop_length": 4, "num_phones": 5}
    network = WaveNet(config, num_classes=16, **sizes)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d | nn.Linear)}
    calls = []
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    network.forward_with_phones(
        torch.randint(0, 16, (2, 40)), torch.tensor([0, 1]), torch.ones(2, 3), torch.randn(2, 2, 10)
    )
    assert len(layers) > 15 and sorted(calls) == sorted(layers)


@pytest.mark.parametrize("params", ["network.head.1.*", "network.stack.blocks.0.filter_gate.*", "network.stack.*"])
def test_kronecker_factors_cover_inner_layers(params):
    torch.manual_seed(0)
    module = WaveNetModule(NETWORK, {}, INFO, conditions=[]).eval()
    train, queries = Examples(Windows(), "train"), Examples(Windows(), "train", [0, 1])
    damping = 5.0
    exact = influence(module, train, queries, params=params, solver=ConjugateGradient(damping=damping, tolerance=1e-6))
    near = influence(module, train, queries, params=params, solver=Ekfac(damping=damping))
    assert near.num_params == exact.num_params
    together = torch.stack([near.delta_test_loss_if_removed.flatten(), exact.delta_test_loss_if_removed.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.99  # so damped, the two inverses agree

"""Fast generation against the parallel forward, over every key of the network's configuration.

A key that is added to WaveNetConfig without values here fails the first test, so that no back-end can forget it.
"""

from dataclasses import fields

import pytest
import torch
from test_generate import CONTEXT, HOP, Q, build, forward_logits, inputs

from quintet.papers.wavenet.generate import generate
from quintet.papers.wavenet.network import WaveNetConfig

VALUES = {  # besides test_generate.SMALL's
    "layers_per_stack": [1, 4],
    "stacks": [1, 3],
    "kernel_size": [1, 3],
    "front_kernel_size": [1, 3],
    "residual_channels": [4, 17],
    "gate_channels": [4, 17],
    "skip_channels": [4, 33],
    "head_channels": [4, 33],
    "speaker_embedding": [5],
    "upsample": ["repeat", "transposed"],
    "local_channels_hidden": [3, 16],
    "residual_scaling": [True],
    "weight_norm": [True],
    "context_stack": [CONTEXT, CONTEXT | {"kernel_size": 3, "stacks": 2}],
    "recognition": [{"channels": 6, "layers": 1, "frame": 5}],
}


def test_every_key_has_values():
    assert set(VALUES) == {field.name for field in fields(WaveNetConfig)}


@pytest.mark.parametrize("backend", ["eager", "numba"])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_key_changes_the_network_and_generation_alike(key, value, backend):
    conditioned, local = key == "speaker_embedding", key in ("upsample", "local_channels_hidden")
    sizes = {"num_phones": 4} if key == "recognition" else {}
    network = build(conditioned=conditioned, local=local, sizes=sizes, **{key: value})
    call, prompt_bt = inputs(network, 2, 12 + 3 * HOP), torch.randint(0, Q, (2, 12))
    classes_bn, logits_bqn = generate(
        network, 3 * HOP, prompt_bt=prompt_bt, batch_size=2, backend=backend, return_logits=True, **call
    )
    expected_bqn = forward_logits(network, classes_bn, prompt_bt, call)
    torch.testing.assert_close(logits_bqn, expected_bqn, rtol=0, atol=1e-4)

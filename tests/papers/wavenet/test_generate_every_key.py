"""Every fast path of generation against the parallel forward, for several values of every key of WaveNetConfig."""

from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from quintet.papers.wavenet.generate.compiled import NumbaBackend
from quintet.papers.wavenet.generate.cuda_graph import CudaGraphBackend
from quintet.papers.wavenet.generate.eager import EagerBackend
from quintet.papers.wavenet.generate.interface import run_backend
from quintet.papers.wavenet.generate.plan import make_plan
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig

# A new key of WaveNetConfig needs its line here. None of the sizes is a multiple of the width of a vector register.
VALUES = {
    "layers_per_stack": [1, 4],
    "stacks": [1, 3],
    "kernel_size": [1, 2, 3],
    "front_kernel_size": [1, 2, 3],
    "residual_channels": [5, 16, 33],
    "gate_channels": [3, 16, 20],
    "skip_channels": [7, 16, 70],
    "head_channels": [9, 16, 65],
    "speaker_embedding": [None, 2],
    "upsample": ["transposed", "repeat"],
    "local_channels_hidden": [3, 8],
    "residual_scaling": [False, True],
    "weight_norm": [False, True],
    "context_stack": [
        None,
        {"layers_per_stack": 2, "stacks": 1, "kernel_size": 2, "residual_channels": 8, "pool": 5, "channels": 4},
        {"layers_per_stack": 1, "stacks": 2, "kernel_size": 3, "residual_channels": 3, "pool": 7, "channels": 2},
    ],
    "recognition": [None, {"channels": 4, "layers": 1, "frame": 10}],
}
BASE = {
    "layers_per_stack": 2,
    "stacks": 2,
    "residual_channels": 12,
    "gate_channels": 10,
    "skip_channels": 20,
    "head_channels": 24,
    "local_channels_hidden": 5,
}
Q, HOP, PROMPT, SAMPLES = 40, 6, 7, 23


class ReplayedWithoutCuda(CudaGraphBackend):
    """The fixed buffers and the step of the CUDA graph, where a replay runs the captured Python step once more."""

    def _capture(self, temperature):
        def replay():
            self.logits_bq = self._step(temperature)

        self.graph, self.temperature = SimpleNamespace(replay=replay), temperature


# Back-end and number of streams: Numba's two threads serve one stream.
FAST_PATHS = {
    "eager": (EagerBackend, 2),
    "numba, streams divided over threads": (partial(NumbaBackend, threads=2), 3),
    "numba, two threads for one stream": (partial(NumbaBackend, threads=2), 1),
    "cuda_graph": (ReplayedWithoutCuda, 2),
}


def test_every_key_of_the_config_has_values():
    assert set(VALUES) == {field.name for field in fields(WaveNetConfig)}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in VALUES.items() for value in values], ids=str
)
def test_every_fast_path_is_the_parallel_forward(key, value):
    torch.manual_seed(0)
    network = WaveNet(
        WaveNetConfig(**{**BASE, key: value}),
        num_classes=Q,
        num_speakers=3,
        num_tags=2,
        local_channels=4,
        hop_length=HOP,
        num_phones=5,
    ).eval()
    for name, (backend, batch) in FAST_PATHS.items():
        speaker_b, tags_bn = torch.arange(batch) % 3, torch.randint(0, 2, (batch, 2)).float()
        local_bft = torch.randn(batch, 4, -(-(PROMPT + SAMPLES) // HOP))
        prompt_bt, uniforms_bn = torch.randint(0, Q, (batch, PROMPT)), torch.rand(batch, SAMPLES, dtype=torch.float64)
        with torch.no_grad():
            plan = make_plan(network, SAMPLES, batch, speaker_b, tags_bn, local_bft, prompt_bt)
            logits_bqn = run_backend(backend(plan), plan, uniforms_bn, 1.0, True)
            silence = plan.classes_bt.size(1) - PROMPT - SAMPLES
            padded_bft = F.pad(local_bft, (silence // HOP, 0))
            expected_bqn = network(plan.classes_bt[:, :-1], speaker_b, tags_bn, padded_bft, last=SAMPLES)
        assert torch.equal(plan.classes_bt[:, silence : silence + PROMPT], prompt_bt), name
        assert (logits_bqn - expected_bqn).abs().max() < 1e-4, name

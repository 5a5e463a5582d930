"""The eager step captured once in a CUDA graph and replayed for every sample."""

import torch
from torch import Tensor

from quintet.papers.wavenet.generate.eager import EagerBackend, draw
from quintet.papers.wavenet.generate.plan import Plan


class CudaGraphBackend(EagerBackend):
    """Launches one graph per sample instead of about 200 kernels; all state is in device buffers at fixed addresses."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        batch, recent = len(plan.classes_bt), self.front_jqr.size(0)
        self.window_bj = plan.classes_bt[:, plan.start + 1 - recent : plan.start + 1].clone()
        self.bias_kbg = plan.constant_bkg.transpose(0, 1).clone()
        self.uniform_b = torch.zeros(batch, dtype=torch.float64, device=plan.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.temperature: float | None = None
        self.logits_bq: Tensor | None = None

    def run(self, start, stop, bias_btkg: Tensor, uniforms_bn: Tensor, temperature: float, keep_logits: bool):
        """As in `EagerBackend.run`; the graph is captured at the first call."""
        if self.graph is None or temperature != self.temperature:
            self._capture(temperature)
        assert self.graph is not None
        biases_tkbg, kept = bias_btkg.permute(1, 2, 0, 3), []
        for n in range(stop - start):
            if n == 0 or len(biases_tkbg) > 1:
                self.bias_kbg.copy_(biases_tkbg[n])
            self.uniform_b.copy_(uniforms_bn[:, n])
            self.graph.replay()
            self.classes_bt[:, start + n + 1] = self.window_bj[:, -1]
            if keep_logits:
                assert self.logits_bq is not None
                kept.append(self.logits_bq.clone())
        return torch.stack(kept, dim=1) if keep_logits else None

    def _step(self, temperature: float) -> Tensor:
        logits_bq = self.logits(self.window_bj, self.bias_kbg)
        drawn_b1 = draw(logits_bq, self.uniform_b, temperature)[:, None]
        self.window_bj.copy_(torch.cat([self.window_bj[:, 1:], drawn_b1], dim=1))
        return logits_bq

    def _capture(self, temperature: float) -> None:
        """Warm up on a side stream, as capturing requires, then restore the state from before the warm-up."""
        state = (self.stack.queue, self.stack.time, self.window_bj)
        saved = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step(temperature)
        torch.cuda.current_stream().wait_stream(side)
        self.graph, self.temperature = torch.cuda.CUDAGraph(), temperature
        with torch.cuda.graph(self.graph):
            self.logits_bq = self._step(temperature)
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)

"""Sequence to sequence with the memory as LightningModules: the translator and the Neural GPU (section 3.2).

Legend: B pairs, T target positions, N real target positions of the batch, V target tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from quintet.common.checkpoints import to_builtin
from quintet.common.distributed import over_ranks
from quintet.common.errors import UserError
from quintet.common.module import PaperModule
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping
from quintet.data.batches import SequencePairBatch
from quintet.data.special_ids import BOS, EOS
from quintet.papers.rare_events.beam_search import beam_search, select_rows
from quintet.papers.rare_events.memory.memory import MemoryAnswer, MemoryConfig
from quintet.papers.rare_events.memory.token_memory import RecallConfig, TokenMemory
from quintet.papers.rare_events.neural_gpu import ExtendedNeuralGPU, NeuralGPUConfig
from quintet.papers.rare_events.translator import Encoded, Translator, TranslatorConfig

METRICS = ("loss", "accuracy", "sequence_accuracy", "memory_accuracy", "memory_loss")


class Outputs(NamedTuple):
    """One pass with the true target shown; rows are the N real target positions."""

    logits: Tensor  # (N, V)
    token: Tensor  # (N,) what is to be predicted
    row: Tensor  # (N,) pair of the batch
    query: Tensor | None  # (N, d) unit queries; None without memory, as the two below
    answer: MemoryAnswer | None
    memory_loss: Tensor | None  # (N,)


class SequenceModule(PaperModule):
    """What both have in common: loss, memory and its writes, metrics. A subclass names its network and config.

    memory: null or search=none trains without one. data_info: vocabulary sizes and counts of target tokens.
    """

    batch_type = SequencePairBatch
    network_type: type[nn.Module]
    config_type: type

    def __init__(
        self,
        network: object,
        memory: MemoryConfig | None,
        optimizer: OptimizerConfig,
        data_info: dict,
        recall: RecallConfig | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing={label_smoothing} must be in [0, 1)")
        config = from_mapping(self.config_type, network, "model.network")
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        self.recall_config = from_mapping(RecallConfig, recall or {}, "model.recall")
        wanted = None if memory is None else from_mapping(MemoryConfig, memory, "model.memory")
        wanted = None if wanted is None or wanted.search == "none" else wanted
        # Plain values only: the checkpoint loads with weights_only and without Hydra.
        configs = {"network": config, "memory": wanted, "recall": self.recall_config}
        configs |= {"optimizer": self.optimizer_config, "data_info": data_info, "label_smoothing": label_smoothing}
        self.save_hyperparameters(to_builtin(configs))
        self.network = self.network_type(config, data_info["source_size"], data_info["target_size"])
        self.tokens = None
        if wanted is not None:
            sizes = self.network.query_width, self.network.width
            self.tokens = TokenMemory(wanted, self.recall_config, *sizes, data_info["target_counts"])
        self._memory_is_read = True
        self.sums = nn.ModuleDict({f"{s}_{m}": MeanMetric() for s in ("val", "test") for m in METRICS})

    @property
    def memory(self):
        """The Memory, or None."""
        return None if self.tokens is None else self.tokens.memory

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """In the block the network answers alone, whatever the memory holds."""
        self._memory_is_read = False
        try:
            yield
        finally:
            self._memory_is_read = True

    def scores(self, top_nd: Tensor, features_nq: Tensor) -> tuple[Tensor, Tensor | None, MemoryAnswer | None]:
        """Logits (N, V) of top outputs with the memory's answers mixed in, and its queries and answers."""
        if self.tokens is None or not self._memory_is_read:
            return self.network.logits(top_nd), None, None
        query_nd, answer = self.tokens.read(features_nq)
        return self.network.logits(self.tokens.combine(top_nd, answer, self.network.output_embedding)), query_nd, answer

    def positions(self, batch: SequencePairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query features (N, q), top outputs (N, D), true token (N,), pair (N,); padding is left out from here on."""
        top_btd, features_btq = self.network(batch.source, batch.source_length, batch.target[:, :-1])
        real_bt = batch.real
        return features_btq[real_bt], top_btd[real_bt], batch.target[:, 1:][real_bt], real_bt.nonzero()[:, 0]

    def outputs(self, batch: SequencePairBatch) -> Outputs:
        """The network on pairs with their true targets."""
        features_nq, top_nd, token_n, row_n = self.positions(batch)
        logits_nv, query_nd, answer = self.scores(top_nd, features_nq)
        loss_n = None if query_nd is None else self.tokens.losses(query_nd, token_n, answer)
        return Outputs(logits_nv, token_n, row_n, query_nd, answer, loss_n)

    def losses(self, out: Outputs, pairs: int) -> Tensor:
        """Mean over its target tokens of cross-entropy (nats) plus weighted memory loss, for each pair (B,)."""
        smoothing = self.hparams["label_smoothing"] if self.training else 0.0
        loss_n = F.cross_entropy(out.logits.float(), out.token, reduction="none", label_smoothing=smoothing)
        if out.memory_loss is not None:
            loss_n = loss_n + self.recall_config.loss_weight * out.memory_loss
        return mean_by_row(loss_n, out.row, pairs)

    def example_losses(self, batch: SequencePairBatch) -> Tensor:
        """Training loss of every pair (B,); reads the memory, writes nothing."""
        return self.losses(self.outputs(batch), len(batch.source))

    def training_step(self, batch: SequencePairBatch, batch_idx: int) -> Tensor:
        out = self.outputs(batch)
        loss = self.losses(out, len(batch.source)).mean()
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.source))
        if out.answer is not None:
            hits = (out.answer.value == out.token).float().mean()
            self.log("train/memory_accuracy", hits, batch_size=len(batch.source))
            self.tokens.write(out.query, out.token, out.answer)
        return loss

    @torch.no_grad()
    def show(self, batch: SequencePairBatch, max_count: int | None = None) -> None:
        """Write pairs with their true targets into the memory; the weights stay. UserError without a memory.

        max_count: only the tokens that stand at most so often in the training split.
        """
        if self.tokens is None:
            raise UserError("there is no memory to show examples to: the run was trained with model.memory=null")
        if max_count is None:
            out = self.outputs(batch)
            self.tokens.write(out.query, out.token, out.answer)
            return
        features_nq, _, token_n, _ = self.positions(batch)
        rows = (self.tokens.counts[token_n] <= max_count).nonzero()[:, 0]
        if len(rows):
            query_nd = self.memory.query(self.tokens.to_query(features_nq[rows]))
            self.tokens.write(query_nd, token_n[rows], self.memory.read(query_nd))

    def validation_step(self, batch: SequencePairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SequencePairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: SequencePairBatch, stage: str) -> None:
        """Cross-entropy and accuracy with the true prefix shown; a sequence counts when all of it is right."""
        out = self.outputs(batch)
        nats_n = F.cross_entropy(out.logits.float(), out.token, reduction="none")
        right_n = (out.logits.argmax(1) == out.token).float()
        whole_b = mean_by_row(right_n, out.row, len(batch.source)) == 1
        found = {"loss": nats_n, "accuracy": right_n, "sequence_accuracy": whole_b.float()}
        if out.answer is not None:
            found["memory_accuracy"] = (out.answer.value == out.token).float()
            found["memory_loss"] = out.memory_loss
        for name, values in found.items():
            self.sums[f"{stage}_{name}"].update(values)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        for name in METRICS if self.tokens is not None else METRICS[:3]:
            metric = self.sums[f"{stage}_{name}"]
            # already the same on every rank: torchmetrics has added the ranks' sums
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=name == "accuracy", sync_dist=False)
            metric.reset()

    def configure_optimizers(self) -> dict:
        return build_optimizer(self, self.optimizer_config)


class TranslationModule(SequenceModule):
    """The attention LSTM with the memory asked at every target position, and beam search."""

    network_type, config_type = Translator, TranslatorConfig

    def __init__(self, network: TranslatorConfig, **others) -> None:
        super().__init__(network, **others)

    @torch.no_grad()
    def translate(
        self, batch: SequencePairBatch, beam_size: int = 4, alpha: float = 0.6, max_length: int | None = None
    ) -> list[list[int]]:
        """The best translation of every source as token ids without bos and eos; the targets are not looked at."""
        count = len(batch.source)
        encoded = self.network.encoder(batch.source, batch.source_length)
        rows = torch.arange(count, device=self.device).repeat_interleave(beam_size)
        encoded = Encoded(*(part[rows] for part in encoded))

        def step(token_n: Tensor, state: tuple) -> tuple[Tensor, tuple]:
            top_ntd, features_ntq, state = self.network.decode(token_n[:, None], encoded, state or None)
            return self.scores(top_ntd[:, 0], features_ntq[:, 0])[0].log_softmax(1), state

        # Rows never leave their sentence, so that `encoded` needs no reordering.
        found = beam_search(step, (), count, bos=BOS, eos=EOS, beam_size=beam_size, alpha=alpha,
                            max_length=max_length or 2 * batch.source.shape[1] + 10,
                            select=select_rows, device=self.device)  # fmt: skip
        best = [row[0].tolist() for row in found.tokens]
        return [row[: row.index(EOS)] if EOS in row else [token for token in row if token] for row in best]


class SymbolModule(SequenceModule):
    """The Extended Neural GPU with the memory asked at every output position."""

    network_type, config_type = ExtendedNeuralGPU, NeuralGPUConfig

    def __init__(self, network: NeuralGPUConfig, **others) -> None:
        super().__init__(network, **others)

    @torch.no_grad()
    def predict(self, batch: SequencePairBatch) -> Tensor:
        """Most likely output tokens (B, S), each fed back before the next; the targets are not looked at."""
        chosen = []

        def choose(top_nd: Tensor, features_nq: Tensor) -> Tensor:
            chosen.append(self.scores(top_nd, features_nq)[0].argmax(1))
            return chosen[-1]

        steps = batch.source.shape[1]
        tops, features = self.network(batch.source, batch.source_length, choose=choose, steps=steps)
        choose(tops[:, -1], features[:, -1])
        return torch.stack(chosen, 1)


def mean_by_row(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Mean (rows,) of the values of each row."""
    total = values_n.new_zeros(rows).index_add(0, row_n, values_n)
    return total / torch.bincount(row_n, minlength=rows).clamp(min=1)

"""Sequence to sequence with the memory as LightningModules: the translator and the Neural GPU (section 3.2).

Legend: B pairs, T target positions, N real target positions of the batch, q query features, D width of the network's
last layer, d memory width, V target tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from quintet.common.beam_search import beam_search, gnmt_penalty
from quintet.common.checkpoints import to_builtin
from quintet.common.distributed import over_ranks
from quintet.common.errors import UserError
from quintet.common.module import PaperModule
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping
from quintet.data.batches import SequencePairBatch
from quintet.data.special_ids import BOS, EOS, PAD
from quintet.papers.rare_events.decoding import TranslationStepDecoder
from quintet.papers.rare_events.memory.config import MemoryConfig, memory_config_or_none
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer
from quintet.papers.rare_events.memory.token_memory import RENAMED_TENSORS, RecallConfig, TokenMemory
from quintet.papers.rare_events.neural_gpu import ExtendedNeuralGPU, NeuralGPUConfig
from quintet.papers.rare_events.translator import Translator, TranslatorConfig

METRICS = ("loss", "accuracy", "sequence_accuracy")
MEMORY_METRICS = ("memory_accuracy", "memory_loss")


class Outputs(NamedTuple):
    """Predictions of the N real target positions, each after the true tokens before it."""

    logits: Tensor  # (N, V)
    token: Tensor  # (N,) true token
    row: Tensor  # (N,) pair of the batch
    query: Tensor | None  # (N, d) unit queries of the memory; None without memory, as the next two
    answer: MemoryAnswer | None
    memory_loss: Tensor | None  # (N,)


class SequenceModule(PaperModule):
    """The loss, the memory and its writes, and the metrics. Subclasses name the network and its config.

    memory: null or search=none trains without memory. data_info: `source_size` and `target_size` of the vocabularies,
    and `target_counts`, the occurrences of each target token in the training split.
    """

    batch_type = SequencePairBatch
    renamed_tensors = ((r"^network\.to_top\.", "network.to_output."), *RENAMED_TENSORS)
    network_type: ClassVar[Any]
    config_type: ClassVar[type]
    network: Any
    sums: Any  # <stage>_<metric> -> MeanMetric

    def __init__(
        self,
        network: Any,
        memory: MemoryConfig | Mapping[str, Any] | None,
        optimizer: OptimizerConfig | Mapping[str, Any],
        data_info: Mapping[str, Any],
        recall: RecallConfig | Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        config: Any = from_mapping(self.config_type, network, "model.network")
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        self.recall_config = from_mapping(RecallConfig, recall or {}, "model.recall")
        memory_config = memory_config_or_none(memory)
        # Only built-in types: the checkpoint loads with weights_only and without Hydra.
        saved = {
            "network": config,
            "memory": memory_config,
            "recall": self.recall_config,
            "optimizer": self.optimizer_config,
            "data_info": data_info,
            "label_smoothing": label_smoothing,
        }
        self.save_hyperparameters(to_builtin(saved))
        self.label_smoothing = label_smoothing
        self.network = self.network_type(config, data_info["source_size"], data_info["target_size"])
        self.token_memory: TokenMemory | None = None
        if memory_config is not None:
            sizes = self.network.query_width, self.network.width
            self.token_memory = TokenMemory(memory_config, self.recall_config, *sizes, data_info["target_counts"])
        self._memory_is_read = True
        names = METRICS + MEMORY_METRICS
        self.sums = nn.ModuleDict({f"{stage}_{name}": MeanMetric() for stage in ("val", "test") for name in names})

    @property
    def memory(self) -> Memory | None:
        """The memory itself, without the layers that connect it to the network."""
        return None if self.token_memory is None else self.token_memory.memory

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Predict by the network alone in the block, whatever the memory contains."""
        self._memory_is_read = False
        try:
            yield
        finally:
            self._memory_is_read = True

    # predictions and losses, with the true tokens before each position given

    def scores(self, output_nd: Tensor, features_nq: Tensor) -> tuple[Tensor, Tensor | None, MemoryAnswer | None]:
        """Logits (N, V) after the memory's answers are mixed in, and the memory's queries (N, d) and answers."""
        if self.token_memory is None or not self._memory_is_read:
            return self.network.logits(output_nd), None, None
        query_nd, answer = self.token_memory.read(features_nq)
        mixed_nd = self.token_memory.combine(output_nd, answer, self.network.output_embedding)
        return self.network.logits(mixed_nd), query_nd, answer

    def positions(self, batch: SequencePairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query features (N, q), outputs (N, D), true token (N,) and pair (N,) of all positions but padding."""
        output_btd, features_btq = self.network(batch.source, batch.source_length, batch.target[:, :-1])
        real_bt = batch.real
        return features_btq[real_bt], output_btd[real_bt], batch.target[:, 1:][real_bt], real_bt.nonzero()[:, 0]

    def outputs(self, batch: SequencePairBatch) -> Outputs:
        """Predictions of all real target positions; reads the memory, writes nothing."""
        features_nq, output_nd, token_n, row_n = self.positions(batch)
        logits_nv, query_nd, answer = self.scores(output_nd, features_nq)
        memory_loss_n = None
        if self.token_memory is not None and query_nd is not None and answer is not None:
            memory_loss_n = self.token_memory.losses(query_nd, token_n, answer)
        return Outputs(logits_nv, token_n, row_n, query_nd, answer, memory_loss_n)

    def losses(self, out: Outputs, pairs: int) -> Tensor:
        """Cross-entropy in nats plus weighted memory loss, averaged over the target tokens of each pair, (B,)."""
        smoothing = self.label_smoothing if self.training else 0.0
        loss_n = F.cross_entropy(out.logits.float(), out.token, reduction="none", label_smoothing=smoothing)
        if out.memory_loss is not None:
            loss_n = loss_n + self.recall_config.loss_weight * out.memory_loss
        return mean_by_row(loss_n, out.row, pairs)

    def example_losses(self, batch: SequencePairBatch) -> Tensor:
        """Training loss of every pair (B,)."""
        return self.losses(self.outputs(batch), len(batch.source))

    # training and writing

    def training_step(self, batch: SequencePairBatch, batch_idx: int) -> Tensor:
        out = self.outputs(batch)
        loss = self.losses(out, len(batch.source)).mean()
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.source))
        if out.answer is not None:
            accuracy = (out.answer.value == out.token).float().mean()
            self.log("train/memory_accuracy", accuracy, batch_size=len(batch.source))
            self._write(out)
        return loss

    def _write(self, out: Outputs) -> None:
        assert self.token_memory is not None and out.query is not None and out.answer is not None
        self.token_memory.write(out.query, out.token, out.answer)

    @torch.no_grad()
    def show(self, batch: SequencePairBatch, max_count: int | None = None) -> None:
        """Write pairs with their true targets into the memory, without training. UserError without a memory.

        max_count: write only tokens that occur at most so often in the training split.
        """
        if self.token_memory is None:
            raise UserError("there is no memory to write to: the run was trained with model.memory=null")
        if max_count is None:
            self._write(self.outputs(batch))
            return
        features_nq, _, token_n, _ = self.positions(batch)
        rows = (self.token_memory.counts[token_n] <= max_count).nonzero()[:, 0]
        if len(rows):
            query_nd, answer = self.token_memory.read(features_nq[rows])
            self.token_memory.write(query_nd, token_n[rows], answer)

    # evaluation

    def validation_step(self, batch: SequencePairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SequencePairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: SequencePairBatch, stage: str) -> None:
        """Cross-entropy and accuracy given the true tokens before; a sequence is right if all its tokens are."""
        out = self.outputs(batch)
        nll_n = F.cross_entropy(out.logits.float(), out.token, reduction="none")
        right_n = (out.logits.argmax(1) == out.token).float()
        whole_b = mean_by_row(right_n, out.row, len(batch.source)) == 1
        found = {"loss": nll_n, "accuracy": right_n, "sequence_accuracy": whole_b.float()}
        if out.answer is not None and out.memory_loss is not None:
            found["memory_accuracy"] = (out.answer.value == out.token).float()
            found["memory_loss"] = out.memory_loss
        for name, values in found.items():
            self.sums[f"{stage}_{name}"].update(values)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        for name in METRICS + (MEMORY_METRICS if self.token_memory is not None else ()):
            metric = self.sums[f"{stage}_{name}"]
            # no sync_dist: torchmetrics has added the ranks' sums
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=name == "accuracy", sync_dist=False)
            metric.reset()

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer_config)


class TranslationModule(SequenceModule):
    """The attention LSTM; the memory is queried at every target position. Translates by beam search."""

    network_type, config_type = Translator, TranslatorConfig
    network: Translator

    def __init__(self, network: TranslatorConfig | Mapping[str, Any], **others: Any) -> None:
        super().__init__(network, **others)

    @torch.no_grad()
    def translate(
        self, batch: SequencePairBatch, beam_size: int = 4, alpha: float = 0.6, max_length: int | None = None
    ) -> list[list[int]]:
        """The best translation of every source as token ids without bos and eos; the targets are not used.

        Scores are log probability / GNMT's length penalty with `alpha`. max_length counts eos; by default it is
        2 * longest source + 10.
        """
        encoded = self.network.encoder(batch.source, batch.source_length)
        decoder = TranslationStepDecoder(self.network, encoded, lambda *at: self.scores(*at)[0])
        output = beam_search(
            decoder,
            len(batch.source),
            bos=BOS,
            eos=EOS,
            beam_size=beam_size,
            max_length=max_length or 2 * batch.source.shape[1] + 10,
            length_penalty=gnmt_penalty(alpha),
            eos_must_rank=False,
            device=self.device,
        )
        best = output.tokens[:, 0].tolist()
        return [ids[: ids.index(EOS)] if EOS in ids else [token for token in ids if token != PAD] for ids in best]


class SymbolModule(SequenceModule):
    """The Extended Neural GPU; the memory is queried at every output position."""

    network_type, config_type = ExtendedNeuralGPU, NeuralGPUConfig
    network: ExtendedNeuralGPU

    def __init__(self, network: NeuralGPUConfig | Mapping[str, Any], **others: Any) -> None:
        super().__init__(network, **others)

    @torch.no_grad()
    def predict(self, batch: SequencePairBatch) -> Tensor:
        """The most likely output tokens (B, S), each fed back before the next is chosen; the targets are not used."""
        chosen: list[Tensor] = []

        def choose(output_bd: Tensor, features_bq: Tensor) -> Tensor:
            chosen.append(self.scores(output_bd, features_bq)[0].argmax(1))
            return chosen[-1]

        steps = batch.source.shape[1]
        outputs, features = self.network(batch.source, batch.source_length, choose=choose, steps=steps)
        choose(outputs[:, -1], features[:, -1])
        return torch.stack(chosen, 1)


def mean_by_row(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """The mean of each row's values (rows,)."""
    total = values_n.new_zeros(rows).index_add(0, row_n, values_n)
    return total / torch.bincount(row_n, minlength=rows).clamp(min=1)

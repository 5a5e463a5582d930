"""Made-up tables and pictures as a data module in memory, and the classifiers that eat them."""

import lightning.pytorch as pl
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from quintet.data.batches import ExampleBatch
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.harness.resume.random_state import RandomState
from quintet.papers.influence.classifiers.module import ClassifierModule


class Tables(pl.LightningDataModule):
    """The contract of ExampleDataModule on tensors: train, and the same again for validation and test."""

    batch_type = ExampleBatch

    def __init__(self, inputs, labels, batch_size=None, classes=None):
        super().__init__()
        self.inputs, self.labels, self.batch_size = inputs.float(), labels, batch_size or len(labels)
        self.num_classes = classes or int(labels.max()) + 1

    @property
    def data_info(self):
        shape = list(self.inputs.shape[1:])
        return {"input_shape": shape, "num_classes": self.num_classes, "num_train": len(self.labels)}

    def arrays(self, split):
        return self.inputs, self.labels

    def num_examples(self, split):
        return len(self.labels)

    def example_batch(self, split, indices):
        rows = torch.tensor(list(indices))
        return ExampleBatch(self.inputs[rows], self.labels[rows], rows)

    def batch(self):
        return self.example_batch("train", range(len(self.labels)))

    def _loader(self, size):
        rows = torch.arange(len(self.labels)).split(size)
        return DataLoader(rows, batch_size=None, collate_fn=lambda index: self.example_batch("train", index))

    def train_dataloader(self):
        return self._loader(self.batch_size)

    def val_dataloader(self):
        return self._loader(7)

    test_dataloader = val_dataloader


def blobs(rows=60, classes=3, features=4, seed=0, spread=1.0, **more):
    """Normal clouds around a random centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=generator)
    return Tables(centres[labels] + spread * torch.randn(rows, features, generator=generator), labels, **more)


def pictures(rows=24, side=8, classes=3, seed=0, **more):
    """Noisy squares whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    images = 0.2 * torch.rand(rows, 1, side, side, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 1:4, 2 * label : 2 * label + 3] += 0.7
    return Tables(images, labels, **more)


def classifier(data, optimizer=None, network=None, **more):
    """A classifier of that data; L-BFGS unless told otherwise."""
    torch.manual_seed(0)
    return ClassifierModule(network or {}, optimizer or {}, data.data_info, **more)


def fit(module, data, *callbacks, max_epochs=1, ckpt=None, **more):
    """The trainer that fitted it."""
    saves = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=saves,
        use_distributed_sampler=False,
        max_epochs=max_epochs,
        callbacks=[RandomState(), *callbacks],
        **more,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer

"""Two-colour pictures whose caption names the colours: a data module in memory, with features or images."""

import torch
from torch.utils.data import DataLoader

from quintet.backbones.encoder import Encoder, EncoderConfig
from quintet.data.batches import CaptionBatch
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "over", *COLOURS]
ENCODER = {"name": "shufflenet_v2_x0_5", "weights": None, "image_size": 32}


def picture(top, bottom):
    image = torch.zeros(3, 32, 32)
    image[:, :16] = torch.tensor(COLOURS[top]).view(3, 1, 1)
    image[:, 16:] = torch.tensor(COLOURS[bottom]).view(3, 1, 1)
    return image


PAIRS = [(top, bottom) for top in COLOURS for bottom in COLOURS]
CAPTIONS = [text for top, bottom in PAIRS for text in (f"a {top} over {bottom}", f"{top} over a {bottom}")]


class Captions(ResumableDataModule):
    """16 images with two captions each, `per_batch` images a batch, in order of (seed, epoch)."""

    def __init__(self, served="features", per_batch=4, words=WORDS):
        super().__init__()
        self.vocabulary, self.served, self.per_batch = words, served, per_batch
        self.images = torch.stack([picture(*pair) for pair in PAIRS])
        with torch.no_grad():
            self.features = Encoder(EncoderConfig(**ENCODER))(self.images)
        self.passes = []

    @property
    def data_info(self):
        ids = [word for row in range(len(CAPTIONS)) for word in self.ids(row)[1:]]
        return {"vocabulary": self.vocabulary, "counts": torch.bincount(torch.tensor(ids), minlength=10).tolist()}

    def ids(self, row):
        return [1, *(self.vocabulary.index(word) for word in CAPTIONS[row].split()), 2]

    def serve(self, what):
        self.served = what

    def batch(self, images):
        rows = [row for image in images for row in (2 * image, 2 * image + 1)]
        words = torch.nn.utils.rnn.pad_sequence([torch.tensor(self.ids(row)) for row in rows], batch_first=True)
        lengths = torch.tensor([len(self.ids(row)) for row in rows])
        shown = (self.images[images], None) if self.served == "images" else (None, self.features[images])
        place = torch.arange(len(images)).repeat_interleave(2)
        return CaptionBatch(*shown, words, lengths, place, torch.tensor(images), torch.tensor(rows))

    def some_images(self, split, count):
        return list(range(16))[:: -(-16 // count)]

    def image_batch(self, split, images):
        return self.batch(list(images))

    def train_dataloader(self):
        return self.resumable_loader(range(16), self.per_batch, seed=3, collate_fn=self.batch)

    def val_dataloader(self):
        return DataLoader(range(16), self.per_batch, collate_fn=self.batch)

    test_dataloader = val_dataloader

    def references(self, split, images):
        return [[CAPTIONS[2 * i], CAPTIONS[2 * i + 1]] for i in images]

    def num_examples(self, split):
        return len(CAPTIONS)

    def example_batch(self, split, indices):
        whole = self.batch([index // 2 for index in indices])
        kept = torch.tensor([2 * n + index % 2 for n, index in enumerate(indices)])
        words, lengths, rows = whole.words[kept], whole.lengths[kept], whole.index[kept]
        return whole._replace(words=words, lengths=lengths, image_row=torch.arange(len(indices)), index=rows)

    def preview(self, split, index):
        return Preview(
            f"pair {index // 2}", text=CAPTIONS[index], image=self.images[index // 2].permute(1, 2, 0).numpy()
        )

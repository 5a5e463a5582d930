"""log p(caption | image) of all pairs of some captions and images, the captions' common beginnings read once.

Legend: I images, C captions, n rows: (place in the tree, image), V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quintet.data.special_ids import BOS
from quintet.papers.show_and_tell.beam_search import Speaker

ROWS = 4096  # of one step: enough for full speed, few enough for memory


@dataclass
class PrefixTree:
    """Captions as paths from `bos`: most begin like others, and what is common is said once.

    children[place]: (word, place) of those that go on from there; ends[caption]: the place that is the caption, eos
    included. depth: words of the longest path.
    """

    children: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])
    ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "PrefixTree":
        """captions: ids after bos, eos last."""
        tree, known = cls(), {}
        for ids in captions:
            place = 0
            for word in ids:
                key = (place, int(word))
                if key not in known:
                    known[key] = len(tree.children)
                    tree.children[place].append((int(word), known[key]))
                    tree.children.append([])
                place = known[key]
            tree.ends.append(place)
        return tree

    @property
    def steps(self) -> int:
        """Places that something follows: so many steps of the decoder an image, instead of one for every word."""
        return sum(bool(following) for following in self.children)


@torch.no_grad()
def log_likelihoods(speaker: Speaker, images: int, tree: PrefixTree, device: torch.device | str = "cpu") -> Tensor:
    """(I, C) log p in nats of every caption for every image of the speaker, whole captions with their end."""
    total_pi = torch.zeros(len(tree.children), images, device=device)
    at_once = max(1, ROWS // images)

    def visit(places: list[int], words: list[int], state: Any) -> None:
        word_n = torch.tensor(words, device=device).repeat_interleave(images)
        log_nv, state = speaker.step(word_n, state)
        parent, word, place = [], [], []
        for row, here in enumerate(places):
            for following, there in tree.children[here]:
                parent.append(row)
                word.append(following)
                place.append(there)
        log_piv = log_nv.float().unflatten(0, (len(places), images))
        parent_c, word_c = torch.tensor(parent, device=device), torch.tensor(word, device=device)
        said_ci = log_piv[parent_c, :, word_c]
        total_pi[place] = total_pi[[places[row] for row in parent]] + said_ci
        on = [n for n, there in enumerate(place) if tree.children[there]]
        for part in _parts(on, at_once):
            row_n = parent_c[part][:, None] * images + torch.arange(images, device=device)
            visit([place[n] for n in part], [word[n] for n in part], speaker.select(state, row_n.flatten()))

    if tree.children[0]:
        visit([0], [BOS], speaker.start())
    return total_pi[tree.ends].T.cpu()


def _parts(items: list[int], most: int) -> list[list[int]]:
    """In as few parts as can be, as equal as can be."""
    count = -(-len(items) // most)
    return [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]

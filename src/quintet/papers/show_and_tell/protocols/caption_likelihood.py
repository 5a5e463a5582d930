"""log p(caption | image) of all pairs of captions and images; prefixes that captions share are read only once.

Legend: I images, C captions, n rows: pairs of (node of the tree, image), V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quintet.common.beam_search import StepDecoder
from quintet.data.special_ids import BOS

ROWS = 4096  # rows of one step: enough for full speed, few enough for memory


@dataclass
class PrefixTree:
    """Captions as paths from the root (bos) in a tree, so that captions with the same beginning share a path.

    children[node]: (word, child node) pairs. ends[caption]: the node at which the caption ends, after eos.
    """

    children: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])
    ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "PrefixTree":
        """captions: ids after bos, eos last."""
        tree = cls()
        known: dict[tuple[int, int], int] = {}
        for ids in captions:
            node = 0
            for word in ids:
                key = (node, int(word))
                if key not in known:
                    known[key] = len(tree.children)
                    tree.children[node].append((int(word), known[key]))
                    tree.children.append([])
                node = known[key]
            tree.ends.append(node)
        return tree

    @property
    def steps(self) -> int:
        """Number of inner nodes: decoder steps for each image, instead of one for every word of every caption."""
        return sum(bool(children) for children in self.children)


@torch.no_grad()
def log_likelihoods(decoder: StepDecoder, images: int, tree: PrefixTree, device: torch.device | str = "cpu") -> Tensor:
    """Natural log p (I, C) of every caption for every image of the decoder, eos included."""
    log_prob_pi = torch.zeros(len(tree.children), images, device=device)  # of the path to each node
    nodes_at_once = max(1, ROWS // images)

    def visit(nodes: list[int], words: list[int], state: Any) -> None:
        """Read the words that lead to these nodes for all images, then visit their children."""
        word_n = torch.tensor(words, device=device).repeat_interleave(images)
        log_nv, state = decoder.step(word_n, state)
        parents, child_words, children = [], [], []
        for index, node in enumerate(nodes):
            for word, child in tree.children[node]:
                parents.append(index)
                child_words.append(word)
                children.append(child)
        log_piv = log_nv.float().unflatten(0, (len(nodes), images))
        parent_c, word_c = torch.tensor(parents, device=device), torch.tensor(child_words, device=device)
        log_prob_pi[children] = log_prob_pi[[nodes[index] for index in parents]] + log_piv[parent_c, :, word_c]
        inner = [n for n, child in enumerate(children) if tree.children[child]]
        for part in _even_parts(inner, nodes_at_once):
            row_n = parent_c[part][:, None] * images + torch.arange(images, device=device)
            visit([children[n] for n in part], [child_words[n] for n in part], decoder.select(state, row_n.flatten()))

    if tree.children[0]:
        visit([0], [BOS], decoder.start())
    return log_prob_pi[tree.ends].T.cpu()


def _even_parts(items: list[int], most: int) -> list[list[int]]:
    """Split items into the fewest parts of at most `most`, of nearly equal length."""
    count = -(-len(items) // most)
    return [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]

"""The beam search of one image over Python lists, as im2txt writes it: what the batched one must equal."""

import torch


def plain_beam(log_probs, *, eos, beam, max_length, captions=1, alpha=0.0, min_length=0, banned=()):
    """Best complete captions [(log p, ids)] of one image; unfinished ones only where nothing is complete.

    log_probs(prefixes): log probabilities (n, V) of the word after each of a list of prefixes without bos.
    """
    partial, complete = [(0.0, [])], []
    for length in range(1, max_length + 1):
        grown = []
        log_nv = log_probs([words for _, words in partial]).clone()
        log_nv[:, list(banned)] = -torch.inf
        if length <= min_length:
            log_nv[:, eos] = -torch.inf
        top = log_nv.topk(min(beam, log_nv.shape[1]), dim=1)
        for (total, words), logs, ids in zip(partial, top.values.tolist(), top.indices.tolist(), strict=True):
            for log, word in zip(logs, ids, strict=True):
                if log == -torch.inf:
                    continue
                kept = complete if word == eos else grown
                kept.append((total + log, [*words, word]))
        partial = sorted(grown, key=lambda one: -one[0])[:beam]
        if not partial:
            break
    best = sorted(complete, key=lambda one: -one[0] / len(one[1]) ** alpha)
    return (best or partial)[:captions]

"""The beam search of one source over Python lists, as im2txt writes it: what the batched one must equal."""

import torch


def plain_beam(log_probs, *, eos, beam, max_length, n_best=1, penalty=lambda length: 1.0, min_length=0, banned=(),
               eos_must_rank=True):  # fmt: skip
    """Best finished hypotheses [(log p, ids)] of one source; unfinished ones only where nothing is finished.

    log_probs(prefixes): log probabilities (n, V) of the token after each of a list of prefixes without bos.
    eos_must_rank=False: a hypothesis may finish at every step, whatever the rank of eos, as in GNMT.
    """
    partial, finished = [(0.0, [])], []
    for length in range(1, max_length + 1):
        grown = []
        log_nv = log_probs([tokens for _, tokens in partial]).clone()
        log_nv[:, list(banned)] = -torch.inf
        if length <= min_length:
            log_nv[:, eos] = -torch.inf
        if not eos_must_rank:
            for (total, tokens), log in zip(partial, log_nv[:, eos].tolist(), strict=True):
                if log > -torch.inf:
                    finished.append((total + log, [*tokens, eos]))
            log_nv[:, eos] = -torch.inf
        top = log_nv.topk(min(beam, log_nv.shape[1]), dim=1)
        for (total, tokens), logs, ids in zip(partial, top.values.tolist(), top.indices.tolist(), strict=True):
            for log, token in zip(logs, ids, strict=True):
                if log == -torch.inf:
                    continue
                kept = finished if token == eos else grown
                kept.append((total + log, [*tokens, token]))
        partial = sorted(grown, key=lambda one: -one[0])[:beam]
        if not partial:
            break
    best = sorted(finished, key=lambda one: -one[0] / penalty(len(one[1])))
    return (best or partial)[:n_best]

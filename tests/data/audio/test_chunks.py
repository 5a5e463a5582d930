import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from quintet.data.audio.chunks import ChunkDataset, Utterances, collate
from quintet.data.audio.mulaw import encode


def utterances(lengths, hop=1, channels=0, frame=160):
    """Sample t of utterance u is a different number for every (u, t); frame f holds f + 1."""
    rng = np.random.default_rng(0)
    pcm = [rng.integers(-32768, 32767, n).astype(np.int16) for n in lengths]
    local = (
        [np.repeat(np.arange(1, -(-n // hop) + 1, dtype=np.float32), channels) for n in lengths] if channels else None
    )
    phones = [np.arange(-(-n // frame), dtype=np.int16) for n in lengths]
    return Utterances(
        rows=range(len(lengths)), ids=[str(i) for i in range(len(lengths))], pcm=pcm, speaker=list(range(len(lengths))),
        local=local, local_channels=channels, hop=hop, phones=phones, phone_frame=frame,
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    hop=st.sampled_from([1, 2, 4]),
    chunk_frames=st.integers(1, 6),
    context_frames=st.integers(1, 12),
)
def test_every_sample_is_a_target_exactly_once_after_its_true_history(lengths, hop, chunk_frames, context_frames):
    frame = hop
    chunk, context = chunk_frames * hop, context_frames * hop
    u = utterances(lengths, hop, channels=2, frame=frame)
    data = ChunkDataset(u, chunk, context)
    seen = [np.zeros(n, int) for n in lengths]
    for item in range(len(data)):
        batch = data[item]
        index, start = data.locate(item)
        classes = encode(u.pcm[index] / 32768)
        padded = np.concatenate([np.full(context, 128), classes, np.full(chunk, 128)])
        assert batch.audio.dtype == torch.int64 and batch.audio.shape == (context + chunk,)
        assert (batch.audio.numpy() == padded[start : start + context + chunk]).all()
        assert batch.mask.shape == (chunk,) and int(batch.utterance) == index == int(batch.speaker)
        (targets,) = np.nonzero(batch.mask.numpy())
        seen[index][start + targets] += 1
        # frame f conditions positions f*hop .. f*hop+hop-1 of the window; frames outside are 0
        positions = np.arange(context + chunk) + start - context
        inside = (positions >= 0) & (positions < -(-lengths[index] // hop) * hop)
        expected = np.where(inside, positions // hop + 1, 0)
        assert (np.repeat(batch.local[1].numpy(), hop) == expected).all()
        frames = np.arange(chunk // frame) + start // frame
        assert (batch.phones.numpy() == np.where(frames < len(u.phones[index]), frames, -100)).all()
    assert all((count == 1).all() for count in seen)


def test_a_loader_batches_and_matches_single_items():
    data = ChunkDataset(utterances([50, 7, 33], hop=4, channels=3, frame=4), 8, 12)
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    singles = collate([data[i] for i in range(4)])
    for a, b in zip(batch, singles, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert batch.tags is None and batch.local.shape == (4, 3, 5)


def test_indices_outside_are_index_errors():
    data = ChunkDataset(utterances([9]), 4, 4)
    assert len(data) == 3 and len(list(data)) == 3  # iteration ends by IndexError

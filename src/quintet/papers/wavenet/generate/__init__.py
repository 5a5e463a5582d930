"""Fast generation: each sample costs one step per layer, since queues keep the layers' past inputs.

The algorithm is that of Le Paine et al. 2016, arXiv 1611.09482. How the pieces fit:

- `interface.generate` checks its arguments, draws the uniform numbers and runs one of three back-ends.
- `plan.make_plan` runs the parallel network once over silence and prompt. `Plan` keeps the inputs of every block, from
  which a back-end fills its queues, and computes the conditioning of each span of samples, so that no back-end needs to
  know about speakers, tags, local features or context stacks: they all arrive as one bias per block.
- `eager` is the reference in PyTorch, over `queues.QueuedStack`; `cuda_graph` captures its step and replays it.
- `compiled` packs the weights for `kernels` (loops over time in Numba), which is built on `vector` (products in vector
  registers and flags between two threads, written in LLVM since Numba cannot express them).

tests/papers/wavenet/test_generate_every_key.py compares all of them with the parallel forward.
"""

from quintet.papers.wavenet.generate.interface import BACKENDS, generate

__all__ = ["BACKENDS", "generate"]

"""Fast generation (WaveNet, section 2; the queues are those of Le Paine et al. 2016, arXiv 1611.09482)."""

from quintet.papers.wavenet.generate.interface import BACKENDS, generate

__all__ = ["BACKENDS", "generate"]

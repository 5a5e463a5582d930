"""Quintet: five landmark papers, one Lightning + Hydra harness."""

from quintet.common import compat

__version__ = "0.1.0"

compat.install()

"""Quintet: five landmark papers, one Lightning + Hydra harness."""

__version__ = "0.1.0"

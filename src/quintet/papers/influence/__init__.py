"""Understanding Black-box Predictions via Influence Functions (Koh and Liang, ICML 2017, arXiv 1703.04730)."""

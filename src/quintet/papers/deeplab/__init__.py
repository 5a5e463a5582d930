"""DeepLab v2 (Chen et al. 2017)."""

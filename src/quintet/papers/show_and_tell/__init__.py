"""Show and Tell (Vinyals et al. 2015)."""

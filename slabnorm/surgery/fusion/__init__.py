"""Fusion: methods of a model rewritten so that norms run together with what takes up their result."""

"""Weights: recognised, read and written; the public ones by name, with their addresses and digests.

Architectures are in `networks`; the weights that come with the package lie in `bundled/`.
"""

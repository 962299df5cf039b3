"""Small stores with images."""

from toy_stores import make_store, pair, store

__all__ = ["make_store", "pair", "store"]

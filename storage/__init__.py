"""Masks as atoms, and the mask store.

`atoms` and `store` are what users name; rooms: `format` (what lies on disk), `access` (reading it from anywhere),
`writing`, `exchange` (formats of other programs), `sharing`. Nothing here knows networks or PyTorch.
"""

from samdeblur.storage.access.files import Unreachable
from samdeblur.storage.atoms import AtomMap, TooManyAtoms
from samdeblur.storage.format.layout import StoreError
from samdeblur.storage.store import ImageNotReady, MaskStore, PictureError, StoreDamaged, UnknownImage, open_store

__all__ = [
    "AtomMap",
    "ImageNotReady",
    "MaskStore",
    "PictureError",
    "StoreDamaged",
    "StoreError",
    "TooManyAtoms",
    "UnknownImage",
    "Unreachable",
    "open_store",
]

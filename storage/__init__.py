"""Masks as atoms, and the mask store: reading, writing, verifying."""

from samdeblur.storage.atoms import AtomMap, TooManyAtoms
from samdeblur.storage.layout import StoreError
from samdeblur.storage.location import Unreachable
from samdeblur.storage.store import (
    ImageNotReady,
    MaskStore,
    PictureError,
    StoreDamaged,
    UnknownImage,
    open_store,
)

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

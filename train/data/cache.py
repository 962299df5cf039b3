"""Decoded images kept in memory between epochs, shared by all workers of a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samdeblur.storage import MaskStore
from samdeblur.storage.store import Window
from samdeblur.train.config import ConfigError

SHARED = Path("/dev/shm")  # where memory that processes share is counted
NAMES = ("blurred", "sharp")


class ImageCache:
    """The images of a store, each decoded once and kept while there is room.

    Crops come from all images equally often, so what came first is kept and nothing is ever thrown away: the share of
    crops that need no decoding is the share of the images that fit.

    Args:
        keys: images that are read; the first of them that fit are kept.
        limit: bytes; 0 keeps nothing, and reads only the window that is asked for.

    Raises:
        ConfigError: more than the shared memory of the machine.
    """

    def __init__(self, store: MaskStore, keys: Sequence[str], limit: int) -> None:
        self.store = store
        self._places: dict[str, int] = {}
        self._pixels: Tensor = torch.empty(0, dtype=torch.uint8)
        self._filled: Tensor = torch.empty(0, dtype=torch.uint8)
        if limit <= 0:
            return
        end = 0
        for key in keys:
            height, width = store.shape(key)
            size = len(NAMES) * height * width * 3
            if end + size > limit:
                break
            self._places[key] = end
            end += size
        free = os.statvfs(SHARED).f_bavail * os.statvfs(SHARED).f_frsize if SHARED.is_dir() else end
        if end > free:
            raise ConfigError(f"cache_mb: {end >> 20} MB do not fit into {SHARED}, which has {free >> 20} MB free")
        self._pixels = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))
        self._filled = torch.zeros(len(self._places), dtype=torch.uint8).share_memory_()
        self._slots = {key: slot for slot, key in enumerate(self._places)}

    def image(self, name: str, key: str, window: Window) -> NDArray[np.uint8]:
        """As `MaskStore.image`."""
        if key not in self._places:
            return self.store.image(name, key, window)
        top, left, height, width = window
        return self._whole(key)[NAMES.index(name), top : top + height, left : left + width]

    def _whole(self, key: str) -> NDArray[np.uint8]:
        """Both images, (2, H, W, 3). Workers that decode the same one at the same time write the same bytes."""
        shape = (len(NAMES), *self.store.shape(key), 3)
        start = self._places[key]
        kept = self._pixels[start : start + int(np.prod(shape))].numpy().reshape(shape)
        if not self._filled[self._slots[key]]:
            for number, name in enumerate(NAMES):
                kept[number] = self.store.image(name, key)
            self._filled[self._slots[key]] = 1
        return kept

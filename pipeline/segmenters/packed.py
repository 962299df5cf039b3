"""Masks as bits: on the host inside their boxes, on a device as whole rows until it is known which are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samdeblur.storage.atoms import Piece

BITS_OF = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)  # of a byte


@dataclass(frozen=True)
class PackedMask:
    """A mask as bits: those of its box in the image, row by row, eight to a byte.

    Attributes:
        top, left: of the box, pixels; it begins with a whole byte.
        width: of the box.
        bits: (height, ceil(width / 8)) uint8; the first pixel is the highest bit.
        area: pixels of the mask.
        box: x0, y0, x1, y1 (inclusive) in the image, exactly around the mask.
    """

    top: int
    left: int
    width: int
    bits: NDArray[np.uint8]
    area: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, rows: NDArray[np.uint8], origin: Sequence[int] = (0, 0)) -> PackedMask:
        """Of whole packed rows, (H, ceil(W / 8)), that begin at `origin`, x, y, of the image."""
        x0, y0, x1, y1 = box = box_of(rows)
        bits = rows[y0 : y1 + 1, x0 // 8 : x1 // 8 + 1].copy()
        left = x0 - x0 % 8  # whole bytes
        area = int(BITS_OF[bits].sum())
        x, y = origin[:2]
        return cls(y + y0, x + left, x1 + 1 - left, bits, area, (box[0] + x, box[1] + y, box[2] + x, box[3] + y))

    def piece(self) -> Piece:
        """What AtomMap takes: where the box begins, and its pixels, (height, width) bool."""
        return self.top, self.left, np.unpackbits(self.bits, axis=1, count=self.width).view(bool)

    def full(self, height: int, width: int) -> NDArray[np.bool_]:
        """(height, width) bool of an image."""
        mask = np.zeros((height, width), bool)
        mask[self.top : self.top + len(self.bits), self.left : self.left + self.width] = self.piece()[2]
        return mask


@dataclass(frozen=True)
class DeviceMask:
    """A mask as whole rows on the device: (H, ceil(W / 8)) uint8 that begin at `origin`, x, y, of the image."""

    rows: Tensor
    origin: tuple[int, int]


class Soon:
    """A tensor on its way to the host; the device goes on meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> Tensor:
        """On the host. Waits for what the device was given before, not for what it was given since."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.cpu()


def to_host(masks: Sequence[PackedMask | DeviceMask]) -> Callable[[], list[PackedMask]]:
    """What packs masks on the host; those on a device are sent now, and packed when it is called."""
    shapes = {mask.rows.shape for mask in masks if isinstance(mask, DeviceMask)}  # of the crops
    sent = {
        shape: Soon(
            torch.stack([mask.rows for mask in masks if isinstance(mask, DeviceMask) and mask.rows.shape == shape])
        )
        for shape in shapes
    }

    def pack() -> list[PackedMask]:
        rows = {shape: iter(soon.get().numpy()) for shape, soon in sent.items()}
        return [
            PackedMask.of(next(rows[mask.rows.shape]), mask.origin) if isinstance(mask, DeviceMask) else mask
            for mask in masks
        ]

    return pack


def count_above(planes: Tensor, level: float) -> Tensor:
    """(n,) int32, pixels of (n, H, W) planes that are above a level."""
    if planes.device.type != "cpu":
        return (planes > level).flatten(1).sum(1, dtype=torch.int32)
    counts = [np.count_nonzero(plane > np.float32(level)) for plane in planes.numpy()]
    return torch.tensor(counts, dtype=torch.int32)


def pack_above(planes: Tensor, level: float) -> NDArray[np.uint8]:
    """(n, H, ceil(W / 8)) uint8 of planes on the host: pixels above a level, the first in the highest bit."""
    return np.packbits(planes.numpy() > np.float32(level), axis=2)


def pack_there(masks: Tensor) -> Tensor:
    """The same of (n, H, W) bool on a device, where they stay."""
    bits = torch.nn.functional.pad(masks, (0, -masks.shape[2] % 8)).unflatten(2, (-1, 8))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8).to(masks.device)
    return (bits * weights).sum(3, dtype=torch.uint8)


def boxes_there(masks: Tensor) -> Tensor:
    """(n, 4) int64 as `box_of`, of (n, H, W) bool on a device."""
    ends = []
    for sides in (masks.any(dim=1), masks.any(dim=2)):
        places = torch.arange(sides.shape[1], device=masks.device)
        first = torch.where(sides, places, sides.shape[1]).amin(1)
        last = torch.where(sides, places, -1).amax(1)
        ends.append((torch.where(last < 0, 0, first), last.clamp(min=0)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], dim=1)


def box_of(rows: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (inclusive) around a packed mask, (H, ceil(W / 8)); zeros for one without a pixel."""
    y = np.flatnonzero(rows.any(axis=1))
    if not len(y):
        return 0, 0, 0, 0
    x = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(rows[y[0] : y[-1] + 1], axis=0)))
    return int(x[0]), int(y[0]), int(x[-1]), int(y[-1])

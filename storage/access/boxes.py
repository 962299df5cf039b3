"""Which part of an array is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

Where = Any  # ..., or a position, or a position and slices with start and stop


def is_position(where: Where) -> bool:
    return where is not ... and isinstance(where if not isinstance(where, tuple) else where[0], int | np.integer)


def box_of(where: Where, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """First and last index (exclusive) along every axis."""
    axes = [] if where is ... else list(where) if isinstance(where, tuple) else [where]
    axes += [slice(None)] * (len(shape) - len(axes))
    start, stop = [], []
    for axis, size in zip(axes, shape, strict=True):
        first, last, _ = (slice(int(axis), int(axis) + 1) if not isinstance(axis, slice) else axis).indices(size)
        start.append(first)
        stop.append(max(first, last))
    return start, stop

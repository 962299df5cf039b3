"""Atoms: a stack of overlapping masks as one label plane and a short table.

An atom is a maximal set of pixels covered by exactly the same set of masks. The label plane of atom numbers and the
table of (atom, mask) pairs together hold the same information as the stack of boolean masks, in the space of one plane.

Shapes: H W pixels, M masks, K atoms, P (atom, mask) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ATOMS = 65535
MAX_MASKS = 65535

Piece = tuple[int, int, NDArray[np.bool_]]  # top, left, and the pixels of a mask from there, (h, w)


class TooManyAtoms(ValueError):
    """The masks split the image into more atoms, or are more, than 16-bit numbers can name."""


@dataclass(frozen=True, eq=False)
class AtomMap:
    """Overlapping masks of one image (or of one window of it).

    Attributes:
        atoms: (H, W) uint16, the atom of each pixel; 0 = covered by no mask. Numbers 1..K count the atoms in raster
            order of their first pixel, so equal masks give equal maps.
        pairs: (P, 2) uint16 rows (atom, mask), sorted; mask is a position in 0..M-1.
        mask_ids: (M,) int32, the number each mask has in its full image; 0..M-1 unless the map is a crop.
    """

    atoms: NDArray[np.uint16]
    pairs: NDArray[np.uint16]
    mask_ids: NDArray[np.int32]

    @property
    def n_masks(self) -> int:
        return len(self.mask_ids)

    @property
    def n_atoms(self) -> int:
        """K. Every atom but 0 is covered by at least one mask, so the sorted table ends with the last one."""
        return int(self.pairs[-1, 0]) if len(self.pairs) else 0

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.atoms.shape
        return height, width

    @classmethod
    def from_masks(
        cls, masks: ArrayLike | Sequence[NDArray[np.bool_]], shape: tuple[int, int] | None = None
    ) -> AtomMap:
        """Encode a stack of masks; lossless, `to_masks` gives them back.

        Args:
            masks: (M, H, W) bool, or a sequence of M planes (H, W), or numbers of which 0 is outside and 1, or for
                uint8 any other, inside. May overlap, repeat and be empty.
            shape: (H, W), needed only when `masks` is an empty sequence.

        Raises:
            TooManyAtoms: more than 65,535 atoms or masks.
            ValueError: the planes are not 2-D or differ in shape, or hold numbers that are no mask, such as logits.
        """
        planes = [_as_plane(mask) for mask in masks]  # type: ignore[union-attr]
        if shape is None:
            shape = planes[0].shape if planes else np.shape(masks)[1:]
        if shape is None or len(shape) != 2 or any(plane.shape != tuple(shape) for plane in planes):
            raise ValueError(f"masks must be planes (H, W) of one shape, got {sorted({p.shape for p in planes})}")
        return cls.from_pieces(len(planes), lambda number: (0, 0, planes[number]), (int(shape[0]), int(shape[1])))

    @classmethod
    def from_pieces(cls, n_masks: int, piece: Callable[[int], Piece], shape: tuple[int, int]) -> AtomMap:
        """Encode masks that are known inside boxes of their own; as `from_masks` of the same masks.

        Args:
            n_masks: M.
            piece: gives of mask 0..M-1 the top and left of its box and the pixels in it, (h, w) bool; asked more than
                once for each, so that they need not all be in memory.
            shape: (H, W) of the image.

        Raises:
            TooManyAtoms: more than 65,535 atoms or masks.
        """
        if n_masks > MAX_MASKS:
            raise TooManyAtoms(f"{n_masks} masks, at most {MAX_MASKS} can be stored")
        if not n_masks or not np.prod(shape):
            return cls.empty(shape, n_masks)
        areas = np.array([np.count_nonzero(piece(number)[2]) for number in range(n_masks)])
        for seed in range(8):
            encoded = _encode(n_masks, piece, shape, areas, seed)
            if encoded is not None:
                return encoded
        raise RuntimeError("eight independent sets of 64-bit words collided; this cannot happen by chance")

    @classmethod
    def empty(cls, shape: tuple[int, int], n_masks: int = 0) -> AtomMap:
        """A map of (H, W) pixels that no mask covers."""
        return cls(np.zeros(shape, np.uint16), np.zeros((0, 2), np.uint16), np.arange(n_masks, dtype=np.int32))

    def to_masks(self) -> NDArray[np.bool_]:
        """The masks, (M, H, W) bool, in their order."""
        return self.mask_table().T[:, self.atoms]

    def mask_table(self) -> NDArray[np.bool_]:
        """(K + 1, M) bool, true where the mask covers the atom; row 0, the uncovered pixels, is false."""
        table = np.zeros((self.n_atoms + 1, self.n_masks), bool)
        table[self.pairs[:, 0], self.pairs[:, 1]] = True
        return table

    def atom_areas(self) -> NDArray[np.int64]:
        """(K + 1,) pixels of each atom, the uncovered pixels first."""
        return np.bincount(self.atoms.ravel(), minlength=self.n_atoms + 1)

    def mask_areas(self) -> NDArray[np.int64]:
        """(M,) pixels of each mask."""
        areas = np.zeros(self.n_masks, np.int64)
        np.add.at(areas, self.pairs[:, 1], self.atom_areas()[self.pairs[:, 0]])
        return areas

    def mask_boxes(self) -> NDArray[np.int64]:
        """(M, 4) boxes x, y, width, height of the masks in pixels; zeros for a mask without a pixel."""
        height, width = self.shape
        size = self.n_atoms + 1
        flat = self.atoms.ravel()
        boxes = np.zeros((self.n_masks, 4), np.int64)
        if not len(self.pairs):
            return boxes
        rows, columns = (axis.ravel() for axis in np.indices(self.shape))
        atoms, masks = self.pairs.T
        for side, position, extent in ((0, columns, width), (1, rows, height)):
            low, high = np.full(size, extent), np.full(size, -1)
            np.minimum.at(low, flat, position)
            np.maximum.at(high, flat, position)
            mask_low, mask_high = np.full(self.n_masks, extent), np.full(self.n_masks, -1)
            np.minimum.at(mask_low, masks, low[atoms])
            np.maximum.at(mask_high, masks, high[atoms])
            boxes[:, side] = np.where(mask_high >= 0, mask_low, 0)
            boxes[:, side + 2] = np.where(mask_high >= 0, mask_high - mask_low + 1, 0)
        return boxes

    def crop(self, top: int, left: int, height: int, width: int) -> AtomMap:
        """The map of a window: atoms renumbered, masks with no pixel in it dropped, `mask_ids` kept.

        Raises:
            ValueError: the window is empty or does not lie inside the image.
        """
        check_window((top, left, height, width), self.shape)
        window = self.atoms[top : top + height, left : left + width]
        return from_window(window, self.pairs, self.mask_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AtomMap):
            return NotImplemented
        return all(
            np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.atoms, other.atoms),
                (self.pairs, other.pairs),
                (self.mask_ids, other.mask_ids),
            )
        )

    __hash__ = None  # type: ignore[assignment]


def check_window(window: tuple[int, int, int, int], shape: tuple[int, int]) -> None:
    """Raise ValueError unless the window (top, left, height, width) is not empty and inside (H, W)."""
    top, left, height, width = window
    if height < 1 or width < 1 or top < 0 or left < 0 or top + height > shape[0] or left + width > shape[1]:
        raise ValueError(f"window (top, left, height, width) = {window} does not fit in an image of {shape}")


def from_window(window: NDArray[np.uint16], pairs: NDArray[np.uint16], mask_ids: NDArray[np.int32]) -> AtomMap:
    """A canonical map of a piece of a label plane, given the table of the whole plane.

    Args:
        window: (h, w) uint16, atom numbers of the whole image.
        pairs: (P, 2) uint16, table of the whole image.
        mask_ids: (M,) int32, mask numbers of the whole image.
    """
    flat, bounds = _runs(window)
    starts = bounds[:-1]
    values = flat[starts]
    first = np.full(int(pairs[-1, 0]) + 1 if len(pairs) else 1, flat.size, np.int64)
    first[values[::-1]] = starts[::-1]  # the last write wins: the first pixel in raster order
    present = np.flatnonzero(first[1:] < flat.size) + 1
    present = present[np.argsort(first[present])]
    renumber = np.zeros(len(first), np.uint16)
    renumber[present] = np.arange(1, len(present) + 1)
    atoms = np.repeat(renumber[values], np.diff(bounds)).reshape(window.shape)

    names = np.ascontiguousarray(pairs[:, 0])  # sorted: the rows of an atom lie together
    low, high = (np.searchsorted(names, present.astype(np.uint16), side) for side in ("left", "right"))
    length = high - low
    stop = np.cumsum(length)
    rows = np.empty((stop[-1] if len(stop) else 0, 2), np.uint16)
    rows[:, 0] = np.repeat(np.arange(1, len(present) + 1, dtype=np.uint16), length)
    masks = pairs[np.repeat(low - stop + length, length) + np.arange(len(rows)), 1]
    used = np.zeros(len(mask_ids), bool)
    used[masks] = True
    rows[:, 1] = (np.cumsum(used) - 1)[masks]
    return AtomMap(atoms, rows, mask_ids[used])


def _as_plane(mask: ArrayLike) -> NDArray[np.bool_]:
    """A mask as bool. Raises ValueError for numbers that are no mask, such as logits, or shares between 0 and 1."""
    plane = np.asarray(mask)
    if plane.dtype not in (np.bool_, np.uint8) and not ((plane == 0) | (plane == 1)).all():
        raise ValueError(f"masks must be bool, or 0 and 1, got other numbers ({plane.dtype}); compare with a threshold")
    return plane.astype(bool, copy=False)


def _runs(plane: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The pixels in raster order, and the bounds of the runs of equal ones: few, so what follows is done on runs."""
    flat = plane.ravel()
    return flat, np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])


def _encode(
    n_masks: int, piece: Callable[[int], Piece], shape: tuple[int, int], areas: NDArray[np.int64], seed: int
) -> AtomMap | None:
    """One try with one set of words; None when two different sets of masks gave the same word."""
    words = np.random.default_rng(seed).integers(1, 2**64, n_masks, np.uint64, endpoint=False)
    code = np.zeros(shape, np.uint64)
    for number, word in enumerate(words):
        top, left, inside = piece(number)
        window = code[top : top + inside.shape[0], left : left + inside.shape[1]]
        np.bitwise_xor(window, word, out=window, where=inside)

    flat, bounds = _runs(code)
    starts = bounds[:-1]
    found, first, inverse = np.unique(flat[starts], return_index=True, return_inverse=True)
    covered = np.flatnonzero(found)
    covered = covered[np.argsort(first[covered])]  # raster order of first appearance
    if len(covered) > MAX_ATOMS:
        raise TooManyAtoms(f"{len(covered)} atoms, at most {MAX_ATOMS} can be stored")
    numbers = np.zeros(len(found), np.uint16)
    numbers[covered] = np.arange(1, len(covered) + 1)
    atoms = np.repeat(numbers[inverse], np.diff(bounds)).reshape(shape)

    rows, columns = np.divmod(starts[first[covered]], shape[1])  # one pixel of each atom
    table = np.zeros((len(covered), n_masks), bool)
    for number in range(n_masks):
        top, left, inside = piece(number)
        height, width = inside.shape
        near = np.flatnonzero((rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width))
        table[near, number] = inside[rows[near] - top, columns[near] - left]
    pairs = np.argwhere(table)
    pairs[:, 0] += 1
    encoded = AtomMap(atoms, pairs.astype(np.uint16), np.arange(n_masks, dtype=np.int32))
    return encoded if np.array_equal(encoded.mask_areas(), areas) else None

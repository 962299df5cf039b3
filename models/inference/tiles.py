"""Images too large for the memory, a tile at a time, while the prior still sees the whole image.

Shapes: B batch, S channels of the prior, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from samdeblur.models.priors.attach import Deblurrer
from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.pooling import AtomBatch

TILE, OVERLAP = 512, 64
MULTIPLE = 64  # of networks that do not say what they pad to
BLENDED = 0.5  # share of an overlap, in its middle, over which one tile fades into the next


class TileError(ValueError):
    """Tiles that do not suit a network."""


@torch.no_grad()
def forward_in_tiles(
    network: nn.Module, image: Tensor, atoms: AtomBatch | None = None, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """What `network(image, atoms)` gives, a tile at a time.

    The features of a prior are computed once for the whole image and cut for each tile, so the borders of tiles
    change no region mean. Tiles begin at multiples of what the network pads to, and the last ones end where the image
    ends, so that pixels meet the same pixels on every level as without tiles. Of an overlap the outer quarters are
    thrown away and the middle half fades from one tile to the next. So the result is that of the whole image where a
    pixel's value depends on pixels at most a quarter of the overlap away; means over a tile are not those over the
    image: see `local_pooling`.

    Memory: that of the network for one tile; beside it image, result, features and a row of tiles, 4 (6 + S) bytes a
    pixel and 12 in the row, and before the first tile what the prior takes for the whole image.

    Args:
        network: a `Deblurrer`, or a module called with the image alone.
        image: (B, 3, H, W). Not larger than a tile: one ordinary call.
        atoms: the masks of the whole image.
        tile: side of a tile, a multiple of the network's attribute `multiple` (64 where it has none).
        overlap: pixels that neighbours share, such a multiple too; the last tiles of a row or column share more.

    Returns:
        (B, 3, H, W), without gradients.

    Raises:
        TileError: sizes that do not suit the network, or a network whose result has another size than the image.
    """
    multiple = check_tiles(network, tile, overlap)
    height, width = image.shape[-2:]
    if height <= tile and width <= tile:
        return network(image, atoms) if isinstance(network, Deblurrer) else network(image)
    result = torch.empty_like(image)
    done = 0
    with _given_features(network, image, atoms) as features:
        for top, bottom in _spans(height, tile, overlap, multiple):
            row = image.new_empty(*image.shape[:2], bottom - top, width)
            seen = 0
            for left, right in _spans(width, tile, overlap, multiple):
                window = image[..., top:bottom, left:right]
                if features is not None:
                    # To their end, where the image ends: features may be padded as the network pads.
                    features.cut = (
                        slice(top, None if bottom == height else bottom),
                        slice(left, None if right == width else right),
                    )
                piece = network(window, atoms) if isinstance(network, Deblurrer) else network(window)
                if not isinstance(piece, Tensor) or piece.shape != window.shape:
                    raise TileError(
                        f"{_name(network)} gives images of another size than its input, and cannot run in tiles; "
                        "leave --tile out"
                    )
                _blend_onto(row, piece.to(row.dtype), left, seen, -1)
                seen = right
            _blend_onto(result, row, top, done, -2)
            done = bottom
    return result


def check_tiles(network: nn.Module, tile: int, overlap: int) -> int:
    """What tiles have to be multiples of. Raises TileError where they are not."""
    multiple = int(getattr(_backbone(network), "multiple", MULTIPLE))
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % multiple or value < 0:
            near = max(round(value / multiple), name == "tile") * multiple
            raise TileError(f"{name} {value}: {_name(network)} needs multiples of {multiple}, for instance {near}")
    if not 0 <= overlap < tile:
        raise TileError(f"overlap {overlap}: must be less than the tile, {tile}")
    return multiple


def _backbone(network: nn.Module) -> nn.Module:
    return network.network if isinstance(network, Deblurrer) else network


def _name(network: nn.Module) -> str:
    return type(_backbone(network)).__name__


def _spans(length: int, tile: int, overlap: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each tile along a side: all begin at multiples, and the last ends with the side."""
    start = 0
    while start + tile < length:
        yield start, start + tile
        start += tile - overlap
    last = max(0, -(-(length - tile) // multiple) * multiple)
    yield last, length


def _blend_onto(canvas: Tensor, piece: Tensor, start: int, seen: int, dim: int) -> None:
    """Put a piece on a canvas that is filled up to `seen`, fading from what lies there into the piece."""
    shared = seen - start
    ramp = int(BLENDED * shared)
    keep = (shared - ramp) // 2
    fade = (torch.arange(ramp, device=piece.device, dtype=piece.dtype) + 0.5) / max(ramp, 1)
    middle = canvas.narrow(dim, start + keep, ramp)
    middle.lerp_(piece.narrow(dim, keep, ramp), fade if dim == -1 else fade[:, None])
    rest = piece.shape[dim] - keep - ramp
    canvas.narrow(dim, start + keep + ramp, rest).copy_(piece.narrow(dim, keep + ramp, rest))


class _Features(Prior):
    """A prior that has been asked already: gives a part of the features of the whole image."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features
        self.cut = (slice(None), slice(None))

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        return self.features[..., self.cut[0], self.cut[1]]


@contextmanager
def _given_features(network: nn.Module, image: Tensor, atoms: AtomBatch | None) -> Iterator[_Features | None]:
    """While open, the prior of a network has seen the whole image, and gives the cut of its features it is told."""
    prior = network.prior if isinstance(network, Deblurrer) else None
    if not isinstance(network, Deblurrer) or prior is None:
        yield None
        return
    features = _Features(prior(image, network._background(image) if atoms is None else atoms))
    network.prior = features
    try:
        yield features
    finally:
        network.prior = prior

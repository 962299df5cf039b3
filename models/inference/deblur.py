"""Deblurring one image: from 8-bit pixels to 8-bit pixels, at once or in tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samdeblur.models.inference.precision import computing
from samdeblur.models.inference.release import let_go
from samdeblur.models.inference.tiles import OVERLAP, forward_in_tiles
from samdeblur.models.priors.attach import Deblurrer
from samdeblur.models.priors.pooling import AtomBatch
from samdeblur.storage import AtomMap


class NotFinite(ValueError):
    """A network gave infinity, or not a number."""


class DeviceError(ValueError):
    """A device that this machine does not have."""


class OutOfMemory(torch.OutOfMemoryError):
    """An image, or a tile of it, that does not fit into the memory of the GPU."""


def pick_device(name: str) -> torch.device:
    """The device for "cpu", "cuda" or "auto" (a GPU where there is one): the first GPU this process sees, or the one
    that was made its own (`torch.cuda.set_device`), as `joined` does for each process of a run.

    Raises:
        DeviceError: a GPU was asked for and torch sees none.
    """
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise DeviceError("device cuda: torch sees no GPU; use cpu or auto")
    if not gpu or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


@torch.inference_mode()
def deblur(
    network: Deblurrer,
    image: NDArray[np.uint8],
    atoms: AtomMap | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    precision: str = "float32",
) -> NDArray[np.uint8]:
    """Deblur an (H, W, 3) uint8 RGB image of any size, on the device of the network.

    Args:
        atoms: the masks of the image; only a network with a prior looks at them.
        tile: side of the tiles a larger image is cut into, so that memory suffices; None takes it whole. See
            `forward_in_tiles`.
        overlap: pixels that neighbouring tiles share.
        precision: "float32", "tf32", or "bfloat16" or "float16" for mixed precision; see `computing`.

    Returns:
        (H, W, 3) uint8: clamped to [0, 1], times 255, rounded.

    Raises:
        NotFinite: the network gave values that are not finite.
        OutOfMemory: the memory of the GPU does not suffice.
        TileError: the tiles do not suit the network.
    """
    return to_pixels(restore(network, image, atoms, tile, overlap, precision))


@torch.inference_mode()
def restore(
    network: Deblurrer,
    image: NDArray[np.uint8] | NDArray[np.uint16],
    atoms: AtomMap | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    precision: str = "float32",
) -> Tensor:
    """As `deblur`, but what the network gives, (3, H, W) on its device, not clamped, not looked at; of uint16 too."""
    weight = next(network.parameters())
    try:
        batch = to_tensor(image, weight)
        masks = AtomBatch.collate([atoms]).to(weight.device) if atoms is not None else None
        with computing(weight.device, precision):
            output = network(batch, masks) if tile is None else forward_in_tiles(network, batch, masks, tile, overlap)
    except torch.OutOfMemoryError as error:
        let_go(error)
        height, width = image.shape[:2]
        how = f"in tiles of {tile}: give smaller ones" if tile else "at once: give a tile size, as in --tile 512"
        raise OutOfMemory(f"{weight.device} has not enough memory for an image of {width}x{height} {how}") from None
    return output[0].float()


def to_tensor(image: NDArray[np.uint8] | NDArray[np.uint16], like: Tensor) -> Tensor:
    """(H, W, 3) uint8 or uint16 to (1, 3, H, W) in [0, 1], of the device and type of another tensor."""
    levels = np.iinfo(image.dtype).max
    plain = image if image.dtype == np.uint8 else image.astype(np.int32)
    return torch.from_numpy(plain).to(like.device).permute(2, 0, 1)[None].to(like.dtype) / levels


def to_pixels(output: Tensor, bits: int = 8) -> NDArray[Any]:
    """(3, H, W) to (H, W, 3) uint8, or uint16: clamped to [0, 1], times 255 or 65535, rounded. Raises NotFinite."""
    if not torch.isfinite(output).all():
        raise NotFinite("the network gave values that are not finite; check the checkpoint against the images")
    whole = output.clamp(0, 1).mul((1 << bits) - 1).round().to(torch.uint8 if bits == 8 else torch.int32)
    pixels: NDArray[Any] = whole.permute(1, 2, 0).cpu().numpy()
    return pixels if bits == 8 else pixels.astype(np.uint16)

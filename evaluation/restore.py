"""Restoring images the way an evaluation asks for: local means, tiles, precision, and the guard."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samdeblur.evaluation.guard import rescue
from samdeblur.evaluation.results import Inference
from samdeblur.models import Deblurrer, local_pooling
from samdeblur.models.inference.deblur import restore, to_pixels, to_tensor
from samdeblur.models.inference.tiles import OVERLAP, TILE
from samdeblur.storage import AtomMap

FLAG = "flag"  # the guard that says what it finds, and changes nothing
FALLBACKS = ("tlc-off", "tiled", "input")


class Restored(NamedTuple):
    """A result, (H, W, 3), typed as its image, what the guard found suspicious, and what stands in its place."""

    image: NDArray[Any]
    flags: tuple[str, ...] = ()
    fallback: str = ""


class Restorer:
    """A network with the settings of an evaluation.

    Args:
        network: as it was loaded; used, not changed.
        inference: its `guard` is None, "flag", or what to fall back to, in order: "tlc-off" (means over the whole
            image), "tiled" (tiles of 512), "input", joined by commas.
        say: takes one line about what local means do not reach.
    """

    def __init__(
        self, network: Deblurrer, inference: Inference, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.plain = self.network = network
        self.inference = inference
        nothing_new = {FLAG, *(() if inference.tlc else ("tlc-off",)), *(("tiled",) if inference.tile else ())}
        self._fallbacks = [name for name in (inference.guard or FLAG).split(",") if name not in nothing_new]
        if inference.tlc is not None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.network = local_pooling(network, inference.tlc)
            for warning in caught:
                say(f"--tlc: {warning.message}")

    @torch.inference_mode()
    def __call__(
        self, blurred: NDArray[np.uint8] | NDArray[np.uint16], atoms: AtomMap | None, tile: int | None = None
    ) -> Restored:
        """Restore an (H, W, 3) uint8 or uint16 image.

        Args:
            tile: side of tiles for this image, where the inference names none.

        Raises:
            NotFinite, OutOfMemory, TileError: as `deblur`.
        """
        bits = 8 * blurred.dtype.itemsize
        tiles = (self.inference.tile, self.inference.overlap) if self.inference.tile or not tile else (tile, OVERLAP)
        output = self._output(self.network, blurred, atoms, *tiles)
        if self.inference.guard is None:
            return Restored(to_pixels(output[0], bits))
        image = to_tensor(blurred, output)
        ways: dict[str, Callable[[], Tensor]] = {
            "tlc-off": lambda: self._output(self.plain, blurred, atoms, *tiles),
            "tiled": lambda: self._output(self.network, blurred, atoms, TILE, OVERLAP),
            "input": lambda: image,
        }
        guarded = rescue(image, output, [(name, ways[name]) for name in self._fallbacks])
        return Restored(to_pixels(guarded.output[0], bits), guarded.flags, guarded.fallback)

    def _output(
        self,
        network: Deblurrer,
        blurred: NDArray[np.uint8] | NDArray[np.uint16],
        atoms: AtomMap | None,
        tile: int | None,
        overlap: int | None,
    ) -> Tensor:
        return restore(network, blurred, atoms, tile, overlap or 0, self.inference.precision)[None]

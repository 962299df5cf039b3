"""A segmenter that needs no weights: a hierarchy of superpixel regions, overlapping as SAM's parts and objects do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage import graph
from skimage.segmentation import slic

from samdeblur.pipeline.segmenters.base import SettingsError
from samdeblur.storage import AtomMap
from samdeblur.storage.atoms import Piece
from samdeblur.storage.decode import BadImage
from samdeblur.storage.writing.commits import geometry_records

MAX_PIXELS = 1 << 25  # of an image: some 5 GB


@dataclass(frozen=True)
class SuperpixelSegmenter:
    """SLIC superpixels merged step by step across their weakest colour edges; every region of every step is a mask.

    Attributes:
        n_segments: superpixels of the finest level, about.
        compactness: SLIC's weight of distance against colour.
        thresholds: mean RGB colour differences (0..441) below which neighbours merge, ascending; a level each.
        min_area, max_area: share of the image a mask may cover.
    """

    bytes_per_pixel: ClassVar[float] = 130.0  # of memory; some 5 GB for MAX_PIXELS

    n_segments: int = 160
    compactness: float = 12.0
    thresholds: tuple[float, ...] = (12.0, 24.0, 40.0)
    min_area: float = 0.001
    max_area: float = 0.5

    def recipe(self) -> Mapping[str, Any]:
        return {"name": "superpixels", **asdict(self), "thresholds": list(self.thresholds)}

    def segment(self, image: NDArray[np.uint8]) -> tuple[AtomMap, dict[str, NDArray[np.float64]]]:
        """Masks from coarse to fine, within a level in raster order of their first pixels; records have no scores.

        Takes some 130 bytes of memory for each pixel. Raises BadImage for more than MAX_PIXELS.
        """
        pixels = image.shape[0] * image.shape[1]
        if pixels > MAX_PIXELS:
            raise BadImage(
                f"{image.shape[1]}x{image.shape[0]} pixels; superpixels take at most {MAX_PIXELS >> 20} million: "
                "take another segmenter, or smaller images"
            )
        finest = slic(image, self.n_segments, self.compactness, start_label=0).astype(np.int32)
        levels = [finest]
        if finest.max() > 0:
            # Colours of the finest level weigh each merge, so the levels are nested.
            edges = graph.rag_mean_color(image, finest)
            merged = (graph.cut_threshold(finest, edges, threshold, in_place=False) for threshold in self.thresholds)
            levels += [level.astype(np.int32) for level in merged]
        regions, seen = [], set()
        for level in reversed(levels):
            areas, first = np.bincount(level.ravel()), _first_pixels(level)
            boxes = find_objects(level + 1)
            fits = (areas >= max(1, self.min_area * pixels)) & (areas <= self.max_area * pixels)
            for label in np.argsort(first):
                if fits[label] and (first[label], areas[label]) not in seen:  # nested: this names a region
                    seen.add((first[label], areas[label]))
                    regions.append((level, label, boxes[label]))

        def piece(number: int) -> Piece:
            level, label, box = regions[number]
            return box[0].start, box[1].start, level[box] == label

        atoms = AtomMap.from_pieces(len(regions), piece, image.shape[:2])
        return atoms, geometry_records(atoms)


def open_superpixels(device: object, **settings: Any) -> SuperpixelSegmenter:
    """Raises SettingsError."""
    try:
        found = replace(SuperpixelSegmenter(), **settings)
        found = replace(found, thresholds=tuple(float(each) for each in found.thresholds))
        _check(found)
    except (TypeError, ValueError) as error:
        known = ", ".join(f"{name} {value}" for name, value in asdict(SuperpixelSegmenter()).items())
        raise SettingsError(f"segmenter superpixels: {error}; its settings: {known}") from error
    return found


def _check(chosen: SuperpixelSegmenter) -> None:
    numbers = (chosen.compactness, chosen.min_area, chosen.max_area)
    if type(chosen.n_segments) is not int or not 1 <= chosen.n_segments <= MAX_PIXELS:
        raise ValueError(f"n_segments is {chosen.n_segments!r}, not a whole number of superpixels")
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in (*numbers, *chosen.thresholds)):
        raise ValueError("compactness, min_area, max_area and thresholds are numbers")
    if chosen.compactness <= 0:
        raise ValueError(f"compactness is {chosen.compactness}, not above 0")
    if not 0 <= chosen.min_area <= chosen.max_area <= 1:
        raise ValueError("min_area and max_area are shares of the image: 0 <= min_area <= max_area <= 1")
    if list(chosen.thresholds) != sorted(chosen.thresholds):
        raise ValueError("thresholds ascend")


def _first_pixels(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """The position in raster order at which each label 0..n appears first; the number of pixels where it does not."""
    first = np.full(labels.max() + 1, labels.size)
    first[labels.ravel()[::-1]] = np.arange(labels.size)[::-1]  # of several, the last assignment stays
    return first

"""A segmenter that needs no weights: a hierarchy of superpixel regions, overlapping as SAM's parts and objects do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import graph
from skimage.segmentation import slic

from samdeblur.storage import AtomMap
from samdeblur.storage.writing.commits import geometry_records


@dataclass(frozen=True)
class SuperpixelSegmenter:
    """SLIC superpixels merged step by step across their weakest colour edges; every region of every step is a mask.

    Attributes:
        n_segments: superpixels of the finest level, about.
        compactness: SLIC's weight of distance against colour.
        thresholds: mean RGB colour differences (0..441) below which neighbours merge, ascending; a level each.
        min_area, max_area: share of the image a mask may cover.
    """

    n_segments: int = 160
    compactness: float = 12.0
    thresholds: tuple[float, ...] = (12.0, 24.0, 40.0)
    min_area: float = 0.001
    max_area: float = 0.5

    def recipe(self) -> Mapping[str, Any]:
        return {"name": "superpixels", **asdict(self), "thresholds": list(self.thresholds)}

    def segment(self, image: NDArray[np.uint8]) -> tuple[AtomMap, dict[str, NDArray[np.float64]]]:
        """Masks from coarse to fine, within a level in raster order of their first pixels; records have no scores."""
        finest = slic(image, self.n_segments, self.compactness, start_label=0)
        levels = [finest]
        if finest.max() > 0:
            # Colours of the finest level weigh each merge, so the levels are nested.
            edges = graph.rag_mean_color(image, finest)
            levels += [graph.cut_threshold(finest, edges, threshold, in_place=False) for threshold in self.thresholds]
        masks, seen = [], set()
        pixels = image.shape[0] * image.shape[1]
        for level in reversed(levels):
            _, first, labels, areas = np.unique(level, return_index=True, return_inverse=True, return_counts=True)
            fits = (areas >= self.min_area * pixels) & (areas <= self.max_area * pixels)
            for label in np.argsort(first):
                if fits[label] and (first[label], areas[label]) not in seen:  # nested: this names a region
                    seen.add((first[label], areas[label]))
                    masks.append(labels.reshape(level.shape) == label)
        atoms = AtomMap.from_masks(masks, image.shape[:2])
        return atoms, geometry_records(atoms)

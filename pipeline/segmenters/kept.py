"""Embeddings as a store keeps them: the maps of an encoder for an image and all its crops, in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.models import NotFinite
from samdeblur.pipeline.segmenters.bounds import number_of_crops
from samdeblur.pipeline.segmenters.mask_generator import Crop
from samdeblur.pipeline.segmenters.sam import SamSegmenter
from samdeblur.storage.format.layout import Features

SMALL = np.zeros((64, 64, 3), np.uint8)


def pack(crops: Sequence[Crop]) -> list[NDArray[np.float16]]:
    """Each map of an encoder, (crops, ...) float16. Raises NotFinite for values that float16 does not have."""
    maps = zip(*(crop.embedding.features for crop in crops), strict=True)
    packed = [torch.cat(of_crops).half().cpu().numpy() for of_crops in maps]
    if not all(np.isfinite(each).all() for each in packed):
        raise NotFinite("the encoder gave values beyond float16; they cannot be kept: leave out --keep-embeddings")
    return packed


def shapes_of(segmenter: SamSegmenter) -> tuple[Features, ...]:
    """Of each map that `pack` gives. The encoder is called once."""
    crops = number_of_crops(segmenter.recipe()["crop_n_layers"])
    shapes = (each.shape[1:] for each in segmenter.embed([SMALL])[0].embedding.features)
    return tuple((crops, first, second, third) for first, second, third in shapes)

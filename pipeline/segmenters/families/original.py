"""Segment Anything of 2023, and all whose model is one of segment-anything's class: HQ and Mobile change the parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from samdeblur.pipeline.segmenters.families.base import Adapter, Embedding
from samdeblur.pipeline.segmenters.speed import EXACT, Speed


class OriginalSam(Adapter):
    """A segment_anything model; changed when `speed` asks for it."""

    def __init__(self, sam: Sam, speed: Speed = EXACT, family: str = "sam") -> None:
        self.family = family
        self._sam, self.speed = speed.prepare(sam), speed
        self._resize = ResizeLongestSide(sam.image_encoder.img_size)
        self.mask_threshold = sam.mask_threshold

    @property
    def device(self) -> torch.device:
        found: torch.device = self._sam.device
        return found

    @cached_property
    def _positions(self) -> Tensor:
        found: Tensor = self._sam.prompt_encoder.get_dense_pe()
        return found

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return longest_side(self._resize, size)

    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        inputs, sizes = [], []
        for piece in pieces:
            sizes.append(self.input_size((piece.shape[0], piece.shape[1])))
            resized = torch.as_tensor(self._resize.apply_image(piece), device=self.device)
            inputs.append(self._sam.preprocess(resized.permute(2, 0, 1).contiguous()[None]))
        batch = torch.cat(inputs)
        with self.speed.context(batch.device):
            embeddings = self._sam.image_encoder(batch).float()
        return [
            Embedding((piece.shape[0], piece.shape[1]), size, (embedding[None],))
            for piece, size, embedding in zip(pieces, sizes, embeddings, strict=True)
        ]

    def decode(
        self, embedding: Embedding, points: NDArray[np.float64], prompts: Tensor | None = None, several: bool = True
    ) -> tuple[Tensor, Tensor]:
        (features,) = embedding.features
        at_model_size = torch.as_tensor(self._resize.apply_coords(points, embedding.size), device=features.device)
        labels = torch.ones(len(points), dtype=torch.int, device=features.device)
        masks = None if prompts is None else prompts[:, None]
        sparse, dense = self._sam.prompt_encoder((at_model_size[:, None], labels[:, None]), boxes=None, masks=masks)
        with self.speed.context(features.device):
            logits, iou = self._sam.mask_decoder(
                image_embeddings=features,
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
            )
        return logits.float().flatten(0, 1), iou.float().flatten(0, 1)

    def full_size(self, logits: Tensor, embedding: Embedding) -> Tensor:
        planes: Tensor = self._sam.postprocess_masks(logits[None], embedding.input_size, embedding.size)[0]
        return planes


def longest_side(resize: ResizeLongestSide, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) with the longer side at the size of the model. Raises ValueError when nothing is left of the other."""
    height, width = resize.get_preprocess_shape(*size, resize.target_length)
    if min(height, width) < 1:
        raise ValueError(f"{size[1]}x{size[0]} pixels are too narrow: nothing is left at the size of the model")
    return height, width

"""Segment Anything 2 and 2.1, by the classes of the package `sam2`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as TF

from samdeblur.pipeline.segmenters.families.base import Adapter, Embedding
from samdeblur.pipeline.segmenters.speed import EXACT, Speed

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Of SAM2AutomaticMaskGenerator, where they are not those of segment-anything's or are not there.
SAM2_DEFAULTS: dict[str, Any] = {
    "pred_iou_thresh": 0.8,
    "mask_threshold": 0.0,
    "use_m2m": False,
    "multimask_output": True,
}


class Stretching(Adapter):
    """Families that stretch every image to a square, with the settings of Segment Anything 2's generator."""

    defaults = SAM2_DEFAULTS
    point_dtype = torch.float32

    def __init__(self, side: int, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> None:
        self._side, self._mean, self._std = side, list(mean), list(std)

    def _inputs(self, pieces: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(n, 3, side, side) float32, normalised."""
        found = []
        for piece in pieces:
            planes = torch.as_tensor(np.ascontiguousarray(piece.transpose(2, 0, 1))).float().div(255)
            resized = TF.resize(planes, [self._side, self._side], antialias=True)
            found.append(TF.normalize(resized, self._mean, self._std))
        return torch.stack(found).to(self.device)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._side, self._side

    def _embedding(self, piece: NDArray[np.uint8], features: tuple[Tensor, ...]) -> Embedding:
        size = piece.shape[0], piece.shape[1]
        return Embedding(size, self.input_size(size), features)

    def _at_model_size(self, points: NDArray[np.float64], size: tuple[int, int], device: torch.device) -> Tensor:
        """(N, 2) float32."""
        found = torch.as_tensor(points, dtype=torch.float32, device=device)
        sides = torch.tensor([size[1], size[0]], device=device)
        return found / sides * self._side


class Sam2(Stretching):
    """A SAM2Base of the package `sam2`."""

    family = "sam2"

    def __init__(self, sam: Any, speed: Speed = EXACT) -> None:
        super().__init__(sam.image_size)
        self._sam = sam
        self.speed = speed
        if speed.compile:
            self._sam.image_encoder.forward = torch.compile(self._sam.image_encoder.forward)

    @property
    def device(self) -> torch.device:
        return next(iter(self._sam.parameters())).device

    @cached_property
    def _positions(self) -> Tensor:
        found: Tensor = self._sam.sam_prompt_encoder.get_dense_pe()
        return found

    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        batch = self._inputs(pieces)
        with self.speed.context(batch.device):
            backbone = self._sam.forward_image(batch)
            _, features, _, sizes = self._sam._prepare_backbone_features(backbone)
        if self._sam.directly_add_no_mem_embed:
            features[-1] = features[-1] + self._sam.no_mem_embed
        maps = [
            feature.float().permute(1, 2, 0).reshape(len(batch), -1, *size)
            for feature, size in zip(features, sizes, strict=True)
        ]
        return [
            self._embedding(piece, tuple(each[number][None] for each in maps)) for number, piece in enumerate(pieces)
        ]

    def decode(
        self, embedding: Embedding, points: NDArray[np.float64], prompts: Tensor | None = None, several: bool = True
    ) -> tuple[Tensor, Tensor]:
        *fine, features = embedding.features
        at_model_size = self._at_model_size(points, embedding.size, features.device)
        labels = torch.ones(len(points), dtype=torch.int, device=features.device)
        masks = None if prompts is None else prompts[:, None]
        sparse, dense = self._sam.sam_prompt_encoder((at_model_size[:, None], labels[:, None]), boxes=None, masks=masks)
        with self.speed.context(features.device):
            logits, iou, _, _ = self._sam.sam_mask_decoder(
                image_embeddings=features,
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
                repeat_image=len(points) > 1,
                high_res_features=fine,
            )
        return logits.float().flatten(0, 1), iou.float().flatten(0, 1)

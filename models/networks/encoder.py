"""A small convolutional image encoder for Segment Anything's prompt encoder and mask decoder.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models.networks.nafnet import LayerNorm2d

STRIDES = (4, 8, 16, 32)  # of the levels


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, layer norm and a two-layer perceptron per pixel, residual (Liu et al., CVPR 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """Features of strides 4, 8, 16 and 32, fused at one of these strides.

    Args:
        img_size: longer side of the images it is used on, a multiple of 32.
        stride: of the embedding.
        widths: channels of the four levels.
        depths: blocks of the four levels.
        embed_dim: channels of the embedding.
        fused_depth: blocks after the levels are fused; 0: a plain convolution, and no way past the levels, as in the
            first models.

    Called with normalised images (B, 3, H, W), H and W multiples of 32, returns (B, embed_dim, H / stride, W / stride).
    """

    def __init__(
        self,
        img_size: int = 384,
        stride: int = 16,
        widths: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (2, 2, 5, 3),
        embed_dim: int = 64,
        fused_depth: int = 0,
    ) -> None:
        super().__init__()
        self.img_size, self.stride = img_size, stride
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), LayerNorm2d(widths[0]))
        self.levels = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(LayerNorm2d(fine), nn.Conv2d(fine, coarse, 2, stride=2)) for fine, coarse in pairwise(widths)
        )
        # Each level on its way to the stride of the embedding: fine ones are folded, coarse ones are enlarged.
        folds = [max(1, stride // own) for own in STRIDES]
        self.to_embedding = nn.ModuleList(
            nn.Conv2d(width, embed_dim, fold, stride=fold) for width, fold in zip(widths, folds, strict=True)
        )
        # Colours and edges reach the embedding as they are, beside what the levels make of them.
        self.direct = nn.Conv2d(3, embed_dim, stride, stride=stride) if fused_depth else None
        mix: list[nn.Module] = [ConvNeXtBlock(embed_dim) for _ in range(fused_depth)]
        mix = mix or [nn.Conv2d(embed_dim, embed_dim, 3, padding=1)]
        self.neck = nn.Sequential(LayerNorm2d(embed_dim), *mix, LayerNorm2d(embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        parts = []
        for index, (level, project) in enumerate(zip(self.levels, self.to_embedding, strict=True)):
            x = level(x)
            parts.append(project(x))
            if index < len(self.downs):
                x = self.downs[index](x)
        size = [side // self.stride for side in image.shape[-2:]]
        fused = parts[0] if self.direct is None else parts[0] + self.direct(image)
        for part in parts[1:]:
            if list(part.shape[-2:]) != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            fused = fused + part
        return self.neck(fused)

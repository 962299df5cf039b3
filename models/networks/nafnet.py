"""NAFNet (Chen et al., ECCV 2022, arXiv 2204.04676), with the parameter names of the public checkpoints.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models.networks.padding import pad_to


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel of a (B, C, H, W) tensor, eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """The two halves of the channels multiplied: (B, 2C, H, W) -> (B, C, H, W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Spatial gating with simplified channel attention, then a gated feed-forward part; both residual and scaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(mixed * self.sca(mixed))
        return x + self.gamma * self.conv5(gate(self.conv4(self.norm2(x))))


class NAFNet(nn.Module):
    """A U-shaped restoration network that adds its output to its input.

    Args:
        width: channels of the first level; each level down doubles them.
        enc_blk_nums: blocks of each encoder level; as many levels as numbers.
        middle_blk_num: blocks at the bottom.
        dec_blk_nums: blocks of each decoder level, deepest first.

    Called with an image (B, 3, H, W), RGB in [0, 1], of any size; returns one of the same shape, not clamped.
    """

    def __init__(
        self,
        width: int = 32,
        enc_blk_nums: Sequence[int] = (1, 1, 1, 28),
        middle_blk_num: int = 1,
        dec_blk_nums: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise ValueError(f"encoder has {len(enc_blk_nums)} levels, decoder {len(dec_blk_nums)}; they must match")
        self.config = {
            "width": width,
            "enc_blk_nums": list(enc_blk_nums),
            "middle_blk_num": middle_blk_num,
            "dec_blk_nums": list(dec_blk_nums),
        }
        widths = [width << level for level in range(len(enc_blk_nums) + 1)]
        self.multiple = 1 << len(enc_blk_nums)
        self.intro = nn.Conv2d(3, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(w, n) for w, n in zip(widths, enc_blk_nums, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.middle_blks = _blocks(widths[-1], middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 2 * w, 1, bias=False), nn.PixelShuffle(2)) for w in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(_blocks(w, n) for w, n in zip(widths[-2::-1], dec_blk_nums, strict=True))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = pad_to(image, -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple)
        x = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            x = decoder(up(x) + skips.pop())
        return (self.ending(x) + padded)[..., :height, :width]


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))


def infer_config(state: Mapping[str, Tensor]) -> dict[str, int | list[int]]:
    """Constructor arguments of the NAFNet a state dict belongs to.

    Raises:
        KeyError, ValueError: the keys are not those of a NAFNet.
    """

    def count(pattern: str) -> int:
        found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
        if found and max(found) >= len(state):
            raise ValueError(f"number {max(found)} in {len(state)} tensors")
        return max(found, default=-1) + 1

    levels = count(r"downs\.(\d+)\.")
    return {
        "width": state["intro.weight"].shape[0],
        "enc_blk_nums": [count(rf"encoders\.{level}\.(\d+)\.") for level in range(levels)],
        "middle_blk_num": count(r"middle_blks\.(\d+)\."),
        "dec_blk_nums": [count(rf"decoders\.{level}\.(\d+)\.") for level in range(levels)],
    }

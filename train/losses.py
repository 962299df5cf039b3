"""What training minimises. Images are (B, 3, H, W) in [0, 1]; each loss is a mean over images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

CHARBONNIER = 1e-3  # where the loss bends from a parabola into a line


def psnr_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Negative PSNR in dB, mean over the batch: 10 / ln 10 * log(mse + 1e-8)."""
    error = (output - sharp).square().mean(dim=(1, 2, 3))
    return 10 / math.log(10) * torch.log(error + 1e-8).mean()


def l1_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (output - sharp).abs().mean()


def charbonnier_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean of sqrt(difference^2 + 1e-6), a smooth L1 (Charbonnier et al., ICIP 1994)."""
    return ((output - sharp).square() + CHARBONNIER**2).sqrt().mean()


LOSSES: dict[str, Loss] = {"psnr": psnr_loss, "l1": l1_loss, "charbonnier": charbonnier_loss}


def in_decibels(name: str, value: float) -> float:
    """A loss as dB, so that 10 more is the same disaster for each: an error over three times as large."""
    return value if name == "psnr" else 20 * math.log10(max(value, 1e-12))

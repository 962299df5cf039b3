"""What every prior is: a module that makes feature maps of an image and its masks."""

from __future__ import annotations

from torch import nn


class Prior(nn.Module):
    """Features from an image and its masks.

    Called with image (B, 3, H, W) in [0, 1] and its AtomBatch; returns (B, channels, H, W).
    """

    channels: int
    config: dict[str, object]

"""A plain U-Net for restoration (after Ronneberger et al., MICCAI 2015, arXiv 1505.04597), which adds to its input.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from samdeblur.models.networks.padding import pad_to


class UNet(nn.Module):
    """Levels of residual blocks of two convolutions, half the size and twice the channels each, joined by addition.

    Args:
        width: channels of the first level.
        levels: how often the image is halved.
        blocks: residual blocks on each level, down and up.

    Called with an image (B, 3, H, W), RGB in [0, 1], of any size; returns one of the same shape, not clamped.
    """

    def __init__(self, width: int = 32, levels: int = 3, blocks: int = 2) -> None:
        super().__init__()
        for name, value in (("width", width), ("levels", levels), ("blocks", blocks)):
            if type(value) is not int or not 1 <= value <= 1024:
                raise ValueError(f"{name}: {value!r} is not a whole number from 1 to 1024")
        self.config = {"width": width, "levels": levels, "blocks": blocks}
        self.multiple = 1 << levels
        widths = [width << level for level in range(levels + 1)]
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(channels, blocks) for channels in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in widths[:-1])
        self.middle = _blocks(widths[-1], blocks)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * channels, channels, 2, stride=2) for channels in widths[-2::-1])
        self.decoders = nn.ModuleList(_blocks(channels, blocks) for channels in widths[-2::-1])
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = pad_to(image, -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple)
        x = self.first(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return (self.last(x) + padded)[..., :height, :width]


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(nn.functional.gelu(self.one(x)))


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels) for _ in range(count)))

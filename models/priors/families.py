"""What families of networks do to an image before a convolution sees it: pad it, reduce it, unshuffle its pixels.

The same has to be done to the features of a prior, or they come to lie beside the pixels they belong to. What is done
is recognised: an image of noise is compared with what reached the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

PADDINGS = ("constant", "reflect", "replicate", "circular")
REDUCTIONS = ("nearest", "average", "bilinear", "bicubic", "bilinear antialiased", "bicubic antialiased")
FACTORS = (1, 2, 4, 8)
UNSHUFFLES = (1, 2, 4)
MOST_BORDER = 16  # where what is padded on both sides is more at the bottom and right, and nothing is reduced
SAME, EXACTLY = 0.999, 0.99999  # shares of the variance of noise that are explained


@dataclass(frozen=True)
class Intake:
    """Padded, then `reduction` times smaller, then squares of pixels put into channels; each may be idle."""

    unshuffle: int = 1  # r: r x r pixels of a channel become r^2 channels
    reduction: int = 1
    how: str = "average"  # of REDUCTIONS
    border: int | str = "end"  # where padding goes: bottom and right, "both" sides alike, or pixels at the top and left
    padding: str = "constant"  # of PADDINGS; constant is zero

    def __call__(self, x: Tensor, reached: Tensor) -> Tensor:
        """(B, S, H, W) -> (B, S r^2, h, w), for a convolution that (B, C, h, w) reached.

        How much is padded follows from the sizes. Raises ValueError when they cannot be those of one image.
        """
        step = self.unshuffle * self.reduction
        height, width = reached.shape[-2:]
        down, right = height * step - x.shape[-2], width * step - x.shape[-1]
        if min(down, right) <= -step:  # fewer rows than that are what a reduction leaves over
            raise ValueError(f"features {tuple(x.shape[-2:])} do not fit what reached the convolution, {height, width}")
        down, right = max(down, 0), max(right, 0)
        if down or right:
            top, left = self._before(down), self._before(right)
            x = F.pad(x, (left, right - left, top, down - top), self.padding)
        if self.reduction > 1:
            x = _reduce(x, self.reduction, self.how)
        return F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x

    def _before(self, total: int) -> int:
        if self.border == "end":
            return 0
        return total // 2 if self.border == "both" else min(int(self.border), total)


def _reduce(x: Tensor, factor: int, how: str) -> Tensor:
    if how == "average":
        return F.avg_pool2d(x, factor)
    mode, *antialiased = how.split()
    return F.interpolate(x, scale_factor=1 / factor, mode=mode, antialias=bool(antialiased))


def noise(height: int, width: int) -> Tensor:
    """(1, 3, H, W) in [0, 1], the same every time, of two values: any curve put on them is a straight line."""
    draws = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1), device="cpu")
    return 0.25 + 0.5 * (draws > 0.5).float()


def recognise(image: Tensor, reached: Tensor) -> Intake | None:
    """How an image of `noise` (1, 3, H, W) became, or became a part of the channels of, what reached a convolution.

    Every channel may have been scaled, shifted and mixed with others, but not with other places. None: not at all.
    """
    if reached.ndim != 4 or len(reached) != 1 or not reached.is_floating_point():
        return None
    image, reached = image.double().cpu(), reached.detach().double().cpu()
    if not reached.isfinite().all():
        return None
    best, found = 0.0, None
    for intake in _candidates(image, reached):
        inside = (intake(torch.ones_like(image[:, :1]), reached)[0] - 1).abs().amax(0) < 1e-3
        explained, share = _explained(intake(image, reached), reached, inside)
        if explained > best:
            best, found = explained, intake
        if share > EXACTLY:
            break
    if found is None:
        return None
    everywhere = torch.ones(reached.shape[-2:], dtype=torch.bool, device="cpu")
    for padding in PADDINGS:
        try:
            padded = replace(found, padding=padding)(image, reached)
        except RuntimeError:  # more than this kind of padding can give
            continue
        if _explained(padded, reached, everywhere)[0]:
            return replace(found, padding=padding)
    return found


def _candidates(image: Tensor, reached: Tensor) -> Iterator[Intake]:
    """What sizes and channels allow, the plainest first."""
    channels, height, width = reached.shape[1:]
    unshuffles = sorted(UNSHUFFLES, key=lambda r: 3 * r * r != channels)
    for unshuffle, reduction in product(unshuffles, FACTORS):
        step = unshuffle * reduction
        pads = height * step - image.shape[-2], width * step - image.shape[-1]
        least = 0 if unshuffle > 1 else 1 - step  # an unshuffle leaves no pixel over
        enlarged = step > 1 and height >= image.shape[-2]
        if min(pads) < least or enlarged or (unshuffle > 1 and channels < 3 * unshuffle**2):
            continue
        borders: list[int | str] = ["end"]
        if max(pads) > 1:
            borders += ["both"] if reduction > 1 else ["both", *range(1, min(MOST_BORDER, min(pads) // 2) + 1)]
        for border, how in product(borders, REDUCTIONS if reduction > 1 else ("average",)):
            yield Intake(unshuffle, reduction, how, border)


def _explained(image: Tensor, reached: Tensor, inside: Tensor) -> tuple[float, float]:
    """Channels of `reached` that are linear in those of the image, (1, C, h, w) each, where `inside` (h, w) is true.

    Returns their number, a little less where a little is left over, and their share of the channels that vary.
    """
    known = F.pad(image[0, :, inside].T, (0, 1), value=1.0)  # (pixels, C + 1)
    if len(known) < 4 * known.shape[1]:
        return 0.0, 0.0
    seen = reached[0, :, inside].T
    seen = seen[:, seen.var(0) > 1e-12]
    normal = known.T @ known
    rest = seen - known @ torch.linalg.solve(normal + 1e-9 * torch.eye(len(normal)).to(normal), known.T @ seen)
    shares = 1 - rest.var(0) / seen.var(0)
    explained = float(shares[shares > SAME].sum())
    return explained, explained / max(len(shares), 1)

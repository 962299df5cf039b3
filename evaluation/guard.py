"""The guard: telling collapsed results without a sharp image, and what stands in their place.

A result has collapsed when its PSNR is more than 3 dB below that of the blurred input (arXiv 2309.02270, section 3),
that is, when its squared error is more than twice that of the input. What an image and the result tell about that is
measured in three numbers, and a result is suspicious when one of them is above its limit. docs/guard.md says how the
limits were fixed, and how often the guard is right.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

FINE = 16  # pixels; what differs within a cell of this side is detail
COARSE = 32  # pixels; the mean of a cell of this side is colour
FLOOR = (0.5 / 255) ** 2  # detail that rounding to 8 bits gives an even surface

ON_BY_DEFAULT = False  # finds too few of the collapsed results on families it was not made for: docs/guard.md


@dataclass(frozen=True)
class Findings:
    """What was measured of one result; infinite where the network gave values that are not finite.

    Attributes:
        range: root mean square of what lies outside [0, 1], in the worst of the 8 x 8 parts of the image.
        detail: how much detail changed, as a share of the detail of the input. Detail is the standard deviation within
            cells of 16 x 16 pixels.
        colour: how much the means of cells of 32 x 32 pixels changed, root mean square in the worst of 4 x 4 parts, as
            a share of the detail of the input. Blur moves light by its length and no further, so these means stay;
            and the error of the input, which a collapsed result exceeds, comes from its detail.
    """

    range: float
    detail: float
    colour: float


@dataclass(frozen=True)
class Limits:
    """Findings above these are suspicious."""

    range: float = 0.047
    detail: float = 1.2
    colour: float = 0.77


LIMITS = Limits()


@dataclass(frozen=True)
class Guarded:
    """A result that was looked at.

    Attributes:
        output: (1, 3, H, W), what stands as the result, not clamped.
        flags: what was suspicious in the network's own result.
        fallback: what stands in its place; empty for the result itself.
    """

    output: Tensor
    flags: tuple[str, ...] = ()
    fallback: str = ""


@torch.no_grad()
def inspect(image: Tensor, output: Tensor) -> list[Findings]:
    """Measure results; the same for an image that is mirrored or transposed, and whatever else is in the batch.

    Args:
        image: (B, 3, H, W) in [0, 1], what the network was given.
        output: (B, 3, H, W), what it gave, before it is clamped; on the same device.

    Returns:
        B findings. One transfer from the device for the whole batch.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != output.shape or image.dim() != 4:
        raise ValueError(f"image and output must be (B, 3, H, W), got {tuple(image.shape)} and {tuple(output.shape)}")
    image, output = image.float(), output.float()
    finite = output.isfinite()
    output = torch.where(finite, output, image)
    inside = output.clamp(0, 1)
    change = inside - image
    detail = _detail(image) + FLOOR
    outside = _worst((output - inside).square(), 8)
    numbers = torch.stack(
        [
            outside.where(finite.all(dim=(1, 2, 3)), math.inf),
            _detail(change) / detail,
            _worst(_cells(change, COARSE).square(), 4) / detail,
        ],
        dim=1,
    )
    return [Findings(*row) for row in numbers.sqrt().tolist()]


def _cells(x: Tensor, side: int) -> Tensor:
    """Means of cells of about a side, in pixels, that fill the image: (B, C, H, W) -> (B, C, h, w)."""
    height, width = x.shape[-2:]
    return F.adaptive_avg_pool2d(x, (math.ceil(height / side), math.ceil(width / side)))


def _detail(x: Tensor) -> Tensor:
    """Mean variance within cells of an image: (B, C, H, W) -> (B,)."""
    return (_cells(x.square(), FINE) - _cells(x, FINE).square()).clamp(min=0).mean(dim=(1, 2, 3))


def _worst(energy: Tensor, parts: int) -> Tensor:
    """Mean over the channels and over the worst of parts x parts parts of an image: (B, C, h, w) -> (B,)."""
    return F.adaptive_avg_pool2d(energy.mean(dim=1, keepdim=True), parts).amax(dim=(1, 2, 3))


def flags(findings: Findings, limits: Limits = LIMITS) -> tuple[str, ...]:
    """Names of the findings that are suspicious: "range", "detail", "colour". None are, and the result passes."""
    names = (field.name for field in fields(Findings))
    return tuple(name for name in names if getattr(findings, name) > getattr(limits, name))


def rescue(
    image: Tensor,
    output: Tensor,
    alternatives: Iterable[tuple[str, Callable[[], Tensor]]] = (),
    limits: Limits = LIMITS,
) -> Guarded:
    """The result of one image if it is not suspicious, else the first alternative that is not.

    Args:
        image: (1, 3, H, W) in [0, 1].
        output: (1, 3, H, W), the network's result, not clamped.
        alternatives: names, and what computes another result of the same shape; asked for in order, and only as far as
            needed. The image itself is never suspicious, so `("input", lambda: image)` always ends the search.

    Returns:
        The result itself, with its flags, where no alternative passes. It may hold values that are not finite then.
    """
    found = flags(inspect(image, output)[0], limits)
    if found:
        for name, compute in alternatives:
            other = compute()
            if not flags(inspect(image, other)[0], limits):
                return Guarded(other, found, name)
    return Guarded(output, found)

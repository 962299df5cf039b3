"""Zero padding at the bottom and the right, as restoration networks pad to the size they can halve."""

from torch import Tensor
from torch.nn import functional as F


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) -> (..., height, width) with zeros at the bottom and the right; `x` itself when it fits."""
    bottom, right = height - x.shape[-2], width - x.shape[-1]
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x

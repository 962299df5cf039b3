"""The mask average pooling unit as the released code of SAM-Deblur computes it, for its checkpoints.

It differs from Algorithm 1 of the paper; docs/checkpoints.md says how. CAT is the same in both: `CATPrior`.

Shapes: B images, H W pixels, H' W' the padded size, S channels, R regions per image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samdeblur.models.networks.padding import pad_to
from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.cat import CATPrior
from samdeblur.models.priors.dropout import random_words, seeds_of
from samdeblur.models.priors.pool_index import accumulator
from samdeblur.models.priors.pooling import AtomBatch

REGIONS = 257  # region 0 is the padding, region 1 + g the pixels of grey value g
MASK_VALUE = 1 / 255  # of a pixel in its mask: boolean masks were divided by 255 as if they were images
GUARD = 1e-8  # added to every divisor


class ReleasedMAPUnit(Prior):
    """MAP of the released code: regions of one grey value in place of masks, pooled after padding.

    The grey image is that of `CATPrior`, codes of overlapping masks added up, so every pixel lies in one region. What
    no mask covers is the region of grey value 0, one as any other. In training mode int(dropout * M) of the M regions
    present in an image are dropped at random, by the seeds of the batch as in `drop_masks`.

    Args:
        channels: S, channels of the encoding.
        dropout: share of the regions of each image that is dropped in training mode.
        multiple: sides are padded with zeros, at the bottom and the right, to multiples of this, as the network pads.

    Returns the features of the padded image, (B, S, H', W'): they are not zero in the padding.
    """

    def __init__(self, channels: int = 2, dropout: float = 0.0, multiple: int = 16) -> None:
        super().__init__()
        if channels < 1 or not 0 <= dropout <= 1 or multiple < 1:
            raise ValueError(
                "ReleasedMAPUnit needs channels >= 1, 0 <= dropout <= 1 and multiple >= 1, "
                f"got {channels}, {dropout} and {multiple}"
            )
        self.channels, self.dropout, self.multiple = channels, dropout, multiple
        self.config = {"name": "released-map", "channels": channels, "dropout": dropout, "multiple": multiple}
        self.grey = CATPrior()
        self.pre_seg = nn.Conv2d(3, channels, 3, padding=1)  # the names in the released checkpoints
        self.pre_seg_in = nn.Conv2d(channels, channels, 1)

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        if image.shape[:1] + image.shape[2:] != batch.atoms.shape:
            raise ValueError(f"image {tuple(image.shape)} does not fit atoms {tuple(batch.atoms.shape)}")
        height, width = (-(-side // self.multiple) * self.multiple for side in image.shape[-2:])
        encoding = self.pre_seg_in(self.pre_seg(pad_to(image, height, width)))
        grey = self.grey(image.float(), batch)[:, 0].mul(255).round().long()  # float32 gives every byte back
        regions = pad_to(grey + 1, height, width)
        kept = torch.arange(REGIONS, device=image.device).expand(len(image), -1) > 0
        if self.training and self.dropout:
            numbers = torch.arange(REGIONS, device=image.device)
            kept = drop_regions(regions, self.dropout, random_words(seeds_of(batch)[:, None], numbers))
        return pool_regions(encoding, regions, kept)


def drop_regions(regions: Tensor, rate: float, draws: Tensor) -> Tensor:
    """The regions an image keeps when int(rate * M) of the M regions it has leave, those with the lowest draws.

    Args:
        regions: (B, H', W') int64, region of each pixel; 0, the padding, is no region of the image.
        draws: (B, R), random numbers of any type.

    Returns:
        (B, R) bool.
    """
    present = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, regions.flatten(1), True)
    present[:, 0] = False
    order = draws.argsort(1)
    order = order.gather(1, (~present).gather(1, order).byte().argsort(dim=1, stable=True))  # those present come first
    rank = order.argsort(1)
    leaving = (rate * present.sum(1).double()).long()
    return present & (rank >= leaving[:, None])


def pool_regions(features: Tensor, regions: Tensor, kept: Tensor) -> Tensor:
    """The pooling of the released code.

    It adds up, over the masks m_k and the mask r of the rest, m (m . x) / (sum(m) + 1e-8), where m_k is 1/255 in kept
    region k and 0 elsewhere, and r is 1 minus all m_k: 254/255 in kept regions, 1 in dropped ones and the padding.
    A pixel lies in one region, so with s_k the sum of x over region k, n_k its pixels, and v_k = 1/255 if it is kept
    and 0 if not, every pixel of region k gets

        v_k * v_k s_k / (v_k n_k + 1e-8)  +  (1 - v_k) * sum_j (1 - v_j) s_j / (sum_j (1 - v_j) n_j + 1e-8)

    which asks for one sum per region: about mean_k / 255 plus the mean of the rest.

    Args:
        features: (B, S, H', W'), any floating type.
        regions: (B, H', W') int64 in 0..R-1.
        kept: (B, R) bool.

    Returns:
        (B, S, H', W'), of the type of `features`. Sums are in float64. Differentiable, twice too.
    """
    batch, channels = features.shape[:2]
    wide = accumulator(features.device)
    pixels = (regions + REGIONS * torch.arange(batch, device=regions.device).view(-1, 1, 1)).flatten()

    # s_k and, in the last row, n_k: (S + 1, B, R)
    values = features.new_ones((channels + 1, pixels.numel()), dtype=wide)
    values[:-1] = features.transpose(0, 1).reshape(channels, -1)
    totals = values.new_zeros(channels + 1, batch * REGIONS).index_add_(1, pixels, values)
    totals = totals.view(channels + 1, batch, REGIONS)
    sums, counts = totals[:-1], totals[-1]

    mask = MASK_VALUE * kept.to(wide)
    rest = 1 - mask
    rest_mean = (rest * sums).sum(-1, keepdim=True) / ((rest * counts).sum(-1, keepdim=True) + GUARD)
    pooled = mask * (mask * sums) / (mask * counts + GUARD) + rest * rest_mean
    result = pooled.to(features.dtype).view(channels, -1).index_select(1, pixels)
    return result.view(channels, *regions.shape).transpose(0, 1)

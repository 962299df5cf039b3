"""The mask average pooling unit of arXiv 2309.02270."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.dropout import drop_masks
from samdeblur.models.priors.pooling import AtomBatch, Statistics, check_options, mask_average_pool

UnitAggregate = Literal["sum", "mean", "smallest", "attention"]
KEYS = 4  # channels of the queries and of the keys of attention


class MAPUnit(Prior):
    """The mask average pooling unit: a 3x3 and a 1x1 convolution encode the image, Algorithm 1 pools the encoding.

    With "attention" a pixel gets no plain average but what it attends to in the smallest mask over it, as networks with
    attention inside regions do (arXiv 2407.09268). Attention is linear, with elu(x) + 1 of queries and keys
    (arXiv 2006.16236): sum of k_j v_j over sum of k_j, each times q_i, for all pixels j of the mask. Both sums are
    averages over a mask, so Algorithm 1 computes them, and no two pixels are ever compared.

    Args:
        channels: S, channels of the encoding; of the values of attention.
        dropout: share of the masks of each image that is dropped in training mode; see `drop_masks`.
        aggregate: what a pixel under several masks gets, "sum" in the paper; see `mask_average_pool`. "attention" is
            ours.
        statistics: "mean" in the paper; "mean+std" gives 2S channels; see `mask_average_pool`; not of attention.
    """

    def __init__(
        self,
        channels: int = 2,
        dropout: float = 0.0,
        aggregate: UnitAggregate = "sum",
        statistics: Statistics = "mean",
    ) -> None:
        super().__init__()
        if channels < 1 or not 0 <= dropout <= 1:
            raise ValueError(f"MAPUnit needs channels >= 1 and 0 <= dropout <= 1, got {channels} and {dropout}")
        _check(aggregate, statistics)
        self.channels = channels if statistics == "mean" else 2 * channels
        self.dropout = dropout
        self.aggregate: UnitAggregate = aggregate
        self.statistics: Statistics = statistics
        self.config = {"name": "map", "channels": channels, "dropout": dropout}
        if aggregate != "sum":  # what the paper has needs no mention
            self.config["aggregate"] = aggregate
        if statistics != "mean":
            self.config["statistics"] = statistics
        width = channels + 2 * KEYS if aggregate == "attention" else channels
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 1))

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        if self.training and self.dropout and not batch.dropped.shape[0]:
            batch = drop_masks(batch, self.dropout)
        encoding = self.encoder(image)
        if self.aggregate == "attention":
            values, queries, keys = encoding.split([self.channels, KEYS, KEYS], dim=1)
            return attend(values, queries, keys, batch)
        return mask_average_pool(encoding, batch, self.aggregate, self.statistics)


def _check(aggregate: str, statistics: str) -> None:
    if aggregate not in get_args(UnitAggregate):
        raise ValueError(f"unknown aggregate {aggregate!r}, choose from {', '.join(get_args(UnitAggregate))}")
    if aggregate != "attention":
        check_options(aggregate, statistics)
    elif statistics != "mean":
        raise ValueError(f"aggregate attention has no statistics {statistics!r}, only mean")


def attend(values: Tensor, queries: Tensor, keys: Tensor, batch: AtomBatch) -> Tensor:
    """Linear attention of every pixel to the pixels of the smallest mask over it.

    Args:
        values: (B, S, H, W). queries, keys: (B, D, H, W), of any sign.

    Returns:
        (B, S, H, W): a mean of the values of the mask, with weights that depend on the pixel and are above zero.
    """
    queries, keys = F.elu(queries) + 1, F.elu(keys) + 1
    products = (keys[:, :, None] * values[:, None]).flatten(1, 2)  # (B, D S, H, W)
    means = mask_average_pool(torch.cat([products, keys], dim=1), batch, "smallest")
    products, sums = means.split([products.shape[1], keys.shape[1]], dim=1)
    products = products.unflatten(1, (keys.shape[1], values.shape[1]))
    shares = (queries * sums).sum(dim=1, keepdim=True)
    return (queries[:, :, None] * products).sum(dim=1) / shares.clamp(min=torch.finfo(shares.dtype).tiny)

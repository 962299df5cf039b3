"""The mask average pooling unit of arXiv 2309.02270."""

from __future__ import annotations

from torch import Tensor, nn

from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.dropout import drop_masks
from samdeblur.models.priors.pooling import Aggregate, AtomBatch, Statistics, check_options, mask_average_pool


class MAPUnit(Prior):
    """The mask average pooling unit: a 3x3 and a 1x1 convolution encode the image, Algorithm 1 pools the encoding.

    Args:
        channels: S, channels of the encoding.
        dropout: share of the masks of each image that is dropped in training mode; see `drop_masks`.
        aggregate: what a pixel under several masks gets, "sum" in the paper; see `mask_average_pool`.
        statistics: "mean" in the paper; "mean+std" gives 2S channels; see `mask_average_pool`.
    """

    def __init__(
        self,
        channels: int = 2,
        dropout: float = 0.0,
        aggregate: Aggregate = "sum",
        statistics: Statistics = "mean",
    ) -> None:
        super().__init__()
        if channels < 1 or not 0 <= dropout <= 1:
            raise ValueError(f"MAPUnit needs channels >= 1 and 0 <= dropout <= 1, got {channels} and {dropout}")
        check_options(aggregate, statistics)
        self.channels = channels if statistics == "mean" else 2 * channels
        self.dropout = dropout
        self.aggregate: Aggregate = aggregate
        self.statistics: Statistics = statistics
        self.config = {"name": "map", "channels": channels, "dropout": dropout}
        if aggregate != "sum":  # what the paper has needs no mention
            self.config["aggregate"] = aggregate
        if statistics != "mean":
            self.config["statistics"] = statistics
        self.encoder = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 1))

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        if self.training and self.dropout and not batch.dropped.shape[0]:
            batch = drop_masks(batch, self.dropout)
        return mask_average_pool(self.encoder(image), batch, self.aggregate, self.statistics)

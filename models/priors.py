"""What a network is told of the masks: the priors of Table 1 of arXiv 2309.02270 as extra channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samdeblur.models.dropout import drop_masks
from samdeblur.models.pooling import Aggregate, AtomBatch, Statistics, check_options, mask_average_pool

METHODS = ("none", "cat", "map", "map-dropout")
SEMANTICS = ("paper", "released")
MASK_DROPOUT = 0.5  # the paper gives no rate; the released code uses this one


class Prior(nn.Module):
    """Features from an image and its masks.

    Called with image (B, 3, H, W) in [0, 1] and its AtomBatch; returns (B, channels, H, W).
    """

    channels: int
    config: dict[str, object]


class CATPrior(Prior):
    """The masks as one grey picture in [0, 1].

    Mask k of the full image has the grey value 2(k + 1) for k < 127, else 2(255 - k) - 1; overlapping masks add up, and
    the sum is clipped to 0..255 and divided by 255 (the released code of SAM-Deblur).
    """

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.config = {"name": "cat"}

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        ids = batch.mask_ids
        grey = torch.where(ids < 127, 2 * (ids + 1), 2 * (255 - ids) - 1)
        atom, mask = batch.pairs.unbind(1)
        code = torch.zeros_like(batch.atom_image).index_add_(0, atom, grey[mask]).clamp_(0, 255)
        return (code.to(image.dtype) / 255)[batch.atoms.long()].unsqueeze(1)


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
        if self.training and self.dropout:
            batch = drop_masks(batch, self.dropout)
        return mask_average_pool(self.encoder(image), batch, self.aggregate, self.statistics)


def build_prior(config: dict[str, object] | None) -> Prior | None:
    """The prior of a saved `config`; None for networks without one."""
    from samdeblur.models.released import ReleasedMAPUnit  # which builds on this file

    if config is None:
        return None
    arguments = dict(config)
    kinds = {"cat": CATPrior, "map": MAPUnit, "released-map": ReleasedMAPUnit}
    return kinds[arguments.pop("name")](**arguments)  # type: ignore[index]


def prior_for(
    method: str,
    channels: int = 2,
    mask_dropout: float = MASK_DROPOUT,
    semantics: str = "paper",
    multiple: int = 16,
    aggregate: Aggregate = "sum",
    statistics: Statistics = "mean",
) -> Prior | None:
    """The prior of a row of Table 1: `none`, `cat`, `map` or `map-dropout`.

    Args:
        channels: S of MAP.
        mask_dropout: share of the masks that map-dropout drops in training mode.
        semantics: "paper", or "released" for what the released code computes; they differ for MAP only.
        multiple: what the network pads the sides of images to, which released MAP depends on: `NAFNet.multiple`.
        aggregate, statistics: of MAP in the paper's semantics; see `mask_average_pool`.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, choose from {', '.join(METHODS)}")
    if semantics not in SEMANTICS:
        raise ValueError(f"unknown semantics {semantics!r}, choose from {', '.join(SEMANTICS)}")
    if method == "none":
        return None
    if method == "cat":
        return CATPrior()
    dropout = mask_dropout if method == "map-dropout" else 0.0
    if semantics == "paper":
        return MAPUnit(channels, dropout, aggregate, statistics)
    if (aggregate, statistics) != ("sum", "mean"):
        raise ValueError(f"semantics {semantics} has no aggregate {aggregate!r} and statistics {statistics!r}")
    return build_prior({"name": "released-map", "channels": channels, "dropout": dropout, "multiple": multiple})

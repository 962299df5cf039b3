"""The rows of Table 1 of arXiv 2309.02270 by name, and the prior of each."""

from __future__ import annotations

from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.cat import CATPrior
from samdeblur.models.priors.map_unit import MAPUnit, UnitAggregate
from samdeblur.models.priors.pooling import Statistics
from samdeblur.models.priors.released import ReleasedMAPUnit

METHODS = ("none", "cat", "map", "map-dropout")
SEMANTICS = ("paper", "released")
MASK_DROPOUT = 0.5  # the paper gives no rate; the released code uses this one

# The `name` of a prior's config -> its class, which the rest of the config is given to.
KINDS: dict[str, type[Prior]] = {"cat": CATPrior, "map": MAPUnit, "released-map": ReleasedMAPUnit}


def build_prior(config: dict[str, object] | None) -> Prior | None:
    """The prior of a saved `config`; None for networks without one."""
    if config is None:
        return None
    arguments = dict(config)
    return KINDS[str(arguments.pop("name"))](**arguments)


def prior_for(
    method: str,
    channels: int = 2,
    mask_dropout: float = MASK_DROPOUT,
    semantics: str = "paper",
    multiple: int = 16,
    aggregate: UnitAggregate = "sum",
    statistics: Statistics = "mean",
) -> Prior | None:
    """The prior of a row of Table 1: `none`, `cat`, `map` or `map-dropout`.

    Args:
        channels: S of MAP.
        mask_dropout: share of the masks that map-dropout drops in training mode.
        semantics: "paper", or "released" for what the released code computes; they differ for MAP only.
        multiple: what the network pads the sides of images to, which released MAP depends on: `NAFNet.multiple`.
        aggregate: of MAP in the paper's semantics; see `MAPUnit`.
        statistics: likewise.
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

"""Table 1 of the paper, as printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samdeblur.evaluation.results import Conventions, Inference

SOURCE = "SAM-Deblur, arXiv 2309.02270v2, Table 1"
CONVENTIONS = Conventions()  # results of any other do not stand beside these
SSIM = "nafnet"  # the paper does not say; its released code computes this one, and 0.960 on GoPro is of this one

Set = tuple[str, str]  # dataset, as the layouts of this package name it, and split


@dataclass(frozen=True)
class PublishedSet:
    images: int
    inference: Inference


@dataclass(frozen=True)
class PublishedRow:
    """One method.

    Attributes:
        method: what this package calls it.
        name: what the paper calls it.
        scores: set -> metric -> value; rates as shares.
    """

    method: str
    name: str
    scores: Mapping[Set, Mapping[str, float]]


SETS: Mapping[Set, PublishedSet] = {
    ("GoPro", "test"): PublishedSet(1111, Inference(tlc=256)),
    ("RealBlur-J", "test"): PublishedSet(980, Inference()),
    ("REDS", "val"): PublishedSet(3000, Inference()),
    ("ReLoBlur", "test"): PublishedSet(395, Inference()),
}


def _row(method: str, name: str, *scores: tuple[float, ...]) -> PublishedRow:
    """PSNR in dB, SSIM and, except for GoPro, MCR in percent, for each set."""
    metrics = ("psnr", f"ssim_{SSIM}", "mcr")
    shares = ((psnr, ssim, *(rate / 100 for rate in rates)) for psnr, ssim, *rates in scores)
    named = (dict(zip(metrics, values, strict=False)) for values in shares)
    return PublishedRow(method, name, dict(zip(SETS, named, strict=True)))


ROWS = (
    _row("none", "w/o SAM", (32.85, 0.960), (26.57, 0.866, 0.20), (25.97, 0.844, 3.80), (25.26, 0.687, 54.68)),
    _row("cat", "CAT", (32.88, 0.961), (26.55, 0.863, 0.31), (26.65, 0.865, 2.57), (29.77, 0.882, 58.73)),
    _row("map", "MAP (no dropout)", (32.82, 0.960), (26.57, 0.866, 0.31), (26.81, 0.865, 0.40), (30.86, 0.897, 55.44)),
    _row(
        "map-dropout",
        "MAP + dropout",
        (32.83, 0.960),
        (26.62, 0.867, 0.00),
        (26.93, 0.868, 0.20),
        (32.29, 0.903, 13.92),
    ),
)

"""What the study compares: sizes, sets of images, masks, and variants of the prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

SEEDS = 5

# Masks, from the worst to the true ones: options of samdeblur-prep run.
MASKS: dict[str, tuple[str, ...]] = {
    "superpixels": ("--segmenter", "superpixels"),
    "sam-coarse": ("--sam", "bundled", "--points-per-side", "8"),
    "sam": ("--sam", "bundled"),
    "true": ("--segmenter", "true-masks"),
}

# Sources of samdeblur-prep run. The first is in distribution; photographs know no true masks.
WORLDS = ("worlds", "worlds-long", "worlds-local", "worlds-noisy", "worlds-bright", "worlds-tone", "worlds-jpeg")
PHOTOGRAPHS = ("sample", "sample-long", "sample-local", "sample-noisy")

# What a network with a prior makes of the first set when it is lied to: ends of the names of sets.
CONTROLS = ("no-masks", "other-masks")


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        train, test: worlds to train on, and of each family to test on.
        side: of the worlds, pixels.
        masks: of MASKS.
        families: of WORLDS and PHOTOGRAPHS, to test on.
        settings: of every training.
    """

    train: int
    test: int
    side: int
    seeds: int
    masks: tuple[str, ...]
    families: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "smoke": Size(
        4, 2, 48, 2, ("superpixels",), (*WORLDS[:2], PHOTOGRAPHS[0]),
        {"width": 4, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1], "steps": 3, "batch_size": 2,
         "crop_size": 32, "log_every": 1, "val_images": 1},
    ),
    "small": Size(
        240, 24, 160, SEEDS, tuple(MASKS), (*WORLDS, *PHOTOGRAPHS),
        {"width": 12, "enc_blk_nums": [0, 1, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 1, 0], "steps": 800,
         "batch_size": 4, "crop_size": 64, "learning_rate": 4e-3, "min_learning_rate": 1e-5, "weight_decay": 1e-4,
         "grad_clip": 1.0, "log_every": 20, "val_every": 200, "val_images": 6},
    ),
    "full": Size(
        2400, 100, 384, SEEDS, tuple(MASKS), (*WORLDS, *PHOTOGRAPHS),
        {"enc_blk_nums": [1, 2, 4], "middle_blk_num": 4, "dec_blk_nums": [2, 1, 1], "width": 32, "steps": 50_000,
         "batch_size": 32, "crop_size": 128, "val_images": 50},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One row of the study.

    Attributes:
        masks: of MASKS; "" where the network looks at none.
        settings: of its training, beside those of the size.
    """

    name: str
    masks: str
    settings: dict[str, Any]

    @property
    def place(self) -> str:
        """Its folder below those of runs and results."""
        return self.name.replace(", ", "-").replace(" ", "-")


def best_masks(masks: Sequence[str]) -> str:
    """The masks of ablations: the best that SAM found."""
    return "sam" if "sam" in masks else masks[0]


def variants(masks: Sequence[str]) -> list[Variant]:
    """All rows for these masks: the four of Table 1, both semantics, options of ours, ablations."""
    best = best_masks(masks)
    found = [Variant("none", "", {"method": "none"})]
    for name in masks:
        found += [Variant(f"{method}, {name}", name, {"method": method}) for method in ("cat", "map", "map-dropout")]
    released = {"semantics": "released"}
    for method in ("map", "map-dropout"):
        found.append(Variant(f"{method} released, {best}", best, {"method": method} | released))
    misrotated = {"method": "map-dropout", "misrotated_masks": True} | released
    found.append(Variant(f"map-dropout released misrotated, {best}", best, misrotated))
    for options in ({"aggregate": "mean"}, {"aggregate": "smallest"}, {"statistics": "mean+std"}):
        name = "map-dropout " + " ".join(options.values())
        found.append(Variant(f"{name}, {best}", best, {"method": "map-dropout"} | options))
    for rate in (0.25, 0.75):
        found.append(Variant(f"map-dropout {rate}, {best}", best, {"method": "map-dropout", "mask_dropout": rate}))
    for channels in (1, 8):
        name = f"map-dropout S={channels}, {best}"
        found.append(Variant(name, best, {"method": "map-dropout", "prior_channels": channels}))
    return found


@dataclass(frozen=True)
class Cell:
    """One training."""

    variant: Variant
    seed: int

    @property
    def place(self) -> str:
        """Its folder below those of runs and results."""
        return f"{self.variant.place}/seed-{self.seed}"


def cells(size: Size) -> Iterator[Cell]:
    """Every training, seed by seed, so that what is there early is comparable."""
    for seed in range(size.seeds):
        for variant in variants(size.masks):
            yield Cell(variant, seed)


@dataclass(frozen=True)
class Store:
    """Images with one kind of masks."""

    images: str  # "train", or of WORLDS and PHOTOGRAPHS
    masks: str

    @property
    def place(self) -> str:
        return f"{self.images}-{self.masks}.zarr"

    def source(self, size: Size) -> tuple[str, str]:
        """Source and split for samdeblur-prep run."""
        if self.images == "train":
            return f"worlds:{size.train}:{size.side}", "train"
        if self.images in PHOTOGRAPHS:
            return self.images, "test"
        return f"{self.images}:{size.test}:{size.side}", "test"


def test_sets(size: Size, masks: str) -> list[Store]:
    """The sets that a network is tested on; without masks those of the first kind, which it does not look at."""
    masks = masks or size.masks[0]
    return [Store(name, masks) for name in size.families if masks != "true" or name in WORLDS]


def stores(size: Size) -> list[Store]:
    """Every store there has to be."""
    return [store for masks in size.masks for store in (Store("train", masks), *test_sets(size, masks))]

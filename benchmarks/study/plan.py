"""What the study compares: sizes, sets of images, masks, and variants of the prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samdeblur.pipeline import BUNDLED_SETTINGS

SEEDS, FEWER = 5, 3  # of the rows of Table 1, and of the others

# Masks, from the worst to the true ones: options of samdeblur-prep run, or None for what it has none for (oracle.py).
MASKS: dict[str, tuple[str, ...] | None] = {
    "superpixels": ("--segmenter", "superpixels"),
    "sam-coarse": ("--sam", "bundled", "--points-per-side", "8"),
    "sam": ("--sam", "bundled"),
    "sam-of-sharp": None,
    "true-displaced": None,
    "true": ("--segmenter", "true-masks"),
}
USUAL = tuple(MASKS)


@dataclass(frozen=True)
class Axis:
    """One way in which masks get worse.

    Attributes:
        label: of the levels.
        levels: kind of masks -> how far it is from the true ones, or a name where there is no such figure.
    """

    label: str
    levels: dict[str, float | str]


# What each of these is: degrade.py.
AXES = {
    "borders moved": Axis(
        "px, each mask in a direction of its own",
        {
            "true": 0.0,
            "true-moved-0.5": 0.5,
            "true-moved-1": 1.0,
            "true-moved-1.5": 1.5,
            "true-moved-2": 2.0,
            "true-displaced": 3.0,
        },
    ),
    "borders of another shape": Axis(
        "what became of each mask",
        {
            "true": "true",
            "true-eroded-1": "eroded 1 px",
            "true-dilated-1": "dilated 1 px",
            "true-smoothed-2": "smoothed 2 px",
            "true-drawn-half": "drawn at 1/2",
            "true-drawn-quarter": "drawn at 1/4",
        },
    ),
    "masks left out": Axis(
        "share of the masks",
        {"true": 0.0, "true-without-0.25": 0.25, "true-without-0.5": 0.5, "true-without-0.75": 0.75},
    ),
    "over- and under-segmented": Axis(
        "what became of each mask",
        {
            "true-joined-4": "4 joined",
            "true-joined-2": "2 joined",
            "true": "true",
            "true-cut-2": "cut in 2",
            "true-cut-4": "cut in 4",
        },
    ),
}
BORDERS = AXES["borders moved"].levels
# Those of the axes, and true masks of which each is moved by 0 to 3 px: noise to train with.
AXES_MASKS = (*dict.fromkeys(kind for axis in AXES.values() for kind in axis.levels), "true-moved-any")
MASKS |= dict.fromkeys(AXES_MASKS)
# Images of 160 px have no need of 24 x 24 points, which take four times as long.
POINTS = ("--points-per-side", "12")
MASKS["sam-12"] = ("--sam", "bundled", *POINTS)
MASKS["sam-12-refined"] = ("--sam", "bundled", *POINTS, "--refine", "3")
# Of these, as in the paper, training images are pre-deblurred, test images not. Where neither are, and where both are:
ALIKE, PREDEBLURRED = "-alike", "-predeblurred"  # the first differs in training alone, the second in the test alone
for kind in ("sam-12", "sam-12-refined"):
    MASKS[kind + ALIKE] = (*(MASKS[kind] or ()), "--predeblur", "none")
    MASKS[kind + PREDEBLURRED] = (*(MASKS[kind] or ()), "--predeblur", "bundled")
MASKS["true"] = ("--segmenter", "true-masks")


def is_oracle(masks: str) -> bool:
    """Whether they know the sharp images: what a prior could be worth, and not what it is."""
    return masks.startswith("true") or masks == "sam-of-sharp"


# Sources of samdeblur-prep run. The first is in distribution; photographs know no true masks.
WORLDS = ("worlds", "worlds-long", "worlds-local", "worlds-noisy", "worlds-bright", "worlds-tone", "worlds-jpeg")
PHOTOGRAPHS = ("sample", "sample-long", "sample-local", "sample-noisy")
MORE_PHOTOGRAPHS, PAIRS = "photographs", "pairs"  # every crop of the sample; real ones, of --pairs

# What a network with a prior makes of the first set when it is lied to: ends of the names of sets.
CONTROLS = ("no-masks", "other-masks")


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        train, test: worlds to train on, and of each family to test on.
        side: of the worlds, pixels.
        masks: of MASKS.
        families: of WORLDS, PHOTOGRAPHS and MORE_PHOTOGRAPHS, to test on.
        settings: of every training.
        axes, priors: whether the rows are those of AXES, or those of PRIORS, and not those of Table 1.
        pairs: a folder of real pairs to test on, as samdeblur-prep run takes it.
        checkpoints: other Segment Anything models of the kind of the bundled one, whose masks networks meet in tests.
    """

    train: int
    test: int
    side: int
    seeds: int
    masks: tuple[str, ...]
    families: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    axes: bool = False
    priors: bool = False
    pairs: Path | None = None
    checkpoints: tuple[Path, ...] = ()

    @property
    def tested(self) -> tuple[str, ...]:
        """What networks are tested on: families, and real pairs if there are any."""
        return (*self.families, PAIRS) if self.pairs else self.families

    @property
    def of_checkpoints(self) -> dict[str, Path]:
        """Kind of masks -> the checkpoint that finds them."""
        return {f"sam-12-of-{path.stem}": path for path in self.checkpoints}

    def options(self, masks: str) -> tuple[str, ...] | None:
        """Of samdeblur-prep run, as in MASKS."""
        if masks not in self.of_checkpoints:
            return MASKS[masks]
        settings = (f"--{name.replace('_', '-')}={value}" for name, value in BUNDLED_SETTINGS.items())
        return ("--sam", str(self.of_checkpoints[masks]), *settings, *POINTS)


SMALL: dict[str, Any] = {
    "width": 12, "enc_blk_nums": [0, 1, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 1, 0], "steps": 800,
    "batch_size": 4, "crop_size": 64, "learning_rate": 4e-3, "min_learning_rate": 1e-5, "weight_decay": 1e-4,
    "grad_clip": 1.0, "log_every": 20, "val_every": 200, "val_images": 6,
}  # fmt: skip

SMOKE: dict[str, Any] = {
    "width": 4, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1], "steps": 3, "batch_size": 2,
    "crop_size": 32, "log_every": 1, "val_images": 1,
}  # fmt: skip


def _priors(settings: dict[str, Any]) -> Size:
    found = tuple(kind + how for how in ("", ALIKE, PREDEBLURRED) for kind in ("sam-12", "sam-12-refined"))
    families = (WORLDS[0], MORE_PHOTOGRAPHS)
    return Size(240, 24, 160, SEEDS, ("true", "true-moved-1", *found), families, settings, priors=True)


SIZES = {
    "smoke": Size(
        4, 2, 48, 2, ("superpixels", "true"), (WORLDS[0], PHOTOGRAPHS[0]),
        SMOKE,
    ),
    "small": Size(240, 24, 160, SEEDS, USUAL, (*WORLDS, *PHOTOGRAPHS), SMALL),
    "axes-smoke": Size(
        4, 2, 48, 2, ("true", "true-displaced", "superpixels"), WORLDS[:1],
        SMOKE, axes=True,
    ),
    "axes": Size(240, 24, 160, SEEDS, (*AXES_MASKS, "superpixels", "sam-12"), WORLDS[:1], SMALL, axes=True),
    "priors-smoke": Size(
        4, 2, 48, 2, ("true", "true-moved-1", "superpixels"), WORLDS[:1],
        SMOKE, priors=True,
    ),
    "priors": _priors(SMALL),
    "priors-half": _priors(SMALL | {"width": 8, "steps": 400}),
    "priors-double": _priors(SMALL | {"width": 18, "steps": 1600}),
    "full": Size(
        2400, 100, 384, SEEDS, USUAL, (*WORLDS, *PHOTOGRAPHS),
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
        seeds: at most so many.
        candidate: of priors.py, in place of MAP; "" for none.
    """

    name: str
    masks: str
    settings: dict[str, Any]
    seeds: int
    candidate: str = ""

    @property
    def place(self) -> str:
        """Its folder below those of runs and results."""
        return self.name.replace(", ", "-").replace(" ", "-")


DROPOUT = {"method": "map-dropout"}

# Rows that are no row of Table 1: the released semantics and aggregations of ours, with SAM's masks and the last ones,
CHANGES: dict[str, dict[str, Any]] = {
    "map released": {"method": "map", "semantics": "released"},
    "map-dropout released": DROPOUT | {"semantics": "released"},
    "map-dropout released misrotated": DROPOUT | {"semantics": "released", "misrotated_masks": True},
    "map-dropout mean": DROPOUT | {"aggregate": "mean"},
    "map-dropout smallest": DROPOUT | {"aggregate": "smallest"},
    "map-dropout mean+std": DROPOUT | {"statistics": "mean+std"},
}
# and ablations, with the last ones.
ABLATIONS: dict[str, dict[str, Any]] = {
    "map-dropout 0.25": DROPOUT | {"mask_dropout": 0.25},
    "map-dropout 0.75": DROPOUT | {"mask_dropout": 0.75},
    "map-dropout S=1": DROPOUT | {"prior_channels": 1},
    "map-dropout S=8": DROPOUT | {"prior_channels": 8},
}


# Priors beside the paper's: settings of the training, and a candidate of priors.py.
PRIORS: dict[str, tuple[dict[str, Any], str]] = {
    "map": ({}, ""),
    "map smallest": ({"aggregate": "smallest"}, ""),
    "soft": ({}, "soft"),
    "map attention": ({"aggregate": "attention"}, ""),
    "distilled": ({}, "distilled"),
    "confident": ({}, "confident"),
    "map shifted": ({"mask_shift": 3.0}, ""),
    "map smallest shifted": ({"mask_shift": 3.0, "aggregate": "smallest"}, ""),
}
MAIN = ("map", "map smallest")  # of PRIORS: the paper's, and the best with true masks


def best_masks(masks: Sequence[str]) -> str:
    """The best that SAM finds in blurred images."""
    return "sam" if "sam" in masks else masks[0]


def variants(size: Size) -> list[Variant]:
    """All rows of a size: the four of Table 1, CHANGES, ABLATIONS; or MAP with the masks of AXES, and two others."""
    masks, found = size.masks, [Variant("none", "", {"method": "none"}, SEEDS)]
    if size.priors:
        return found + [
            Variant(f"{what}, {name}", name, {"method": "map"} | settings, SEEDS if what in MAIN else FEWER, candidate)
            for name in masks
            for what, (settings, candidate) in PRIORS.items()
            if _makes_sense(what, name)
        ]
    if size.axes:
        found += [Variant(f"map, {name}", name, {"method": "map"}, SEEDS) for name in masks]
        for what, settings in (("map-dropout", DROPOUT), ("map smallest", {"method": "map", "aggregate": "smallest"})):
            found += [Variant(f"{what}, {name}", name, settings, FEWER) for name in masks if name in BORDERS]
        return found
    for name in masks:
        rows = ("map", "map-dropout") if name == "true-displaced" else ("cat", "map", "map-dropout")
        seeds = FEWER if name == "true-displaced" else SEEDS
        found += [Variant(f"{row}, {name}", name, {"method": row}, seeds) for row in rows]
    for name in dict.fromkeys((best_masks(masks), masks[-1])):
        others = CHANGES | (ABLATIONS if name == masks[-1] else {})
        found += [Variant(f"{what}, {name}", name, settings, FEWER) for what, settings in others.items()]
    return found


def _makes_sense(prior: str, masks: str) -> bool:
    """True masks alone are moved on purpose, or tried with what was dropped; a segmenter alone doubts its masks."""
    if not is_oracle(masks):
        return prior in ("map", "map smallest", "map attention", "confident")
    return (masks == "true" or not prior.endswith("shifted")) and prior != "confident"


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
        for variant in variants(size):
            if seed < variant.seeds:
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
        if self.images == MORE_PHOTOGRAPHS:
            return "sample", "all"
        if self.images == PAIRS:
            return str(size.pairs), "test"
        if self.images in PHOTOGRAPHS:
            return self.images, "test"
        return f"{self.images}:{size.test}:{size.side}", "test"


def test_sets(size: Size, masks: str) -> list[Store]:
    """The sets that a network is tested on; one without masks, which looks at none, with some that are there."""
    found = [name for name in size.masks if not name.startswith("true")]
    sets = [
        Store(name, (masks or (size.masks[0] if name in WORLDS else found[0])).removesuffix(ALIKE))
        for name in size.tested
    ]
    return [store for store in sets if store.images in WORLDS or not store.masks.startswith("true")]


def crossed_sets(size: Size) -> list[Store]:
    """What networks trained with masks that know the sharp images are tested on with other masks."""
    if size.priors:
        others = dict.fromkeys((*BORDERS, *(name.removesuffix(ALIKE) for name in size.masks), *size.of_checkpoints))
        return [Store(size.families[0], masks) for masks in others]
    if size.axes:
        others = [masks for masks in size.masks if masks in BORDERS or not is_oracle(masks)]
        return [Store(size.families[0], masks) for masks in others]
    return test_sets(size, best_masks(size.masks))


def is_crossed(variant: Variant, size: Size) -> bool:
    """Whether a network is tested on `crossed_sets` too."""
    if size.priors:
        return variant.masks in ("true", "true-moved-1")
    return is_oracle(variant.masks) and (not size.axes or variant.masks in (*BORDERS, "true-moved-any"))


def train_store(variant: Variant, size: Size) -> Store:
    return Store("train", (variant.masks or size.masks[0]).removesuffix(PREDEBLURRED))


def stores_of(variant: Variant, size: Size) -> list[Store]:
    """Those that a row is trained and tested with."""
    return [train_store(variant, size), *test_sets(size, variant.masks)]


def stores(size: Size) -> list[Store]:
    """Every store there has to be."""
    found = [store for variant in variants(size) for store in stores_of(variant, size)]
    return list(dict.fromkeys([*found, *crossed_sets(size)]))

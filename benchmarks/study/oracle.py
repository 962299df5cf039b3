"""Masks that nobody has in practice: those that SAM finds in the sharp pictures, and true ones a little off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator, PrepSettings, Source, open_source
from samdeblur.pipeline.job.coordinator import prepare
from samdeblur.pipeline.sources.base import ImagePair
from samdeblur.storage import AtomMap

DISPLACED = 3.0  # pixels, each mask in a direction of its own


@dataclass(frozen=True)
class OracleSource:
    """A source whose true masks are those of an oracle, of ORACLES."""

    source: Source
    oracle: str

    @property
    def dataset(self) -> str:
        return self.source.dataset

    @property
    def split(self) -> str:
        return self.source.split

    @property
    def digest(self) -> str:
        return self.source.digest

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    @property
    def keys(self) -> Sequence[str]:
        return self.source.keys

    def shape(self, key: str) -> tuple[int, int]:
        return self.source.shape(key)

    def read(self, key: str) -> ImagePair:
        pair = self.source.read(key)
        if self.oracle == "sam-of-sharp":
            return replace(pair, masks=_generator().generate(pair.sharp)[0])
        assert pair.masks is not None
        return replace(pair, masks=displaced(pair.masks, np.random.default_rng(int(key))))

    def subset(self, keys: Iterable[str]) -> OracleSource:
        return replace(self, source=self.source.subset(keys))


@cache
def _generator() -> MaskGenerator:
    return MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)


def displaced(masks: AtomMap, rng: np.random.Generator, pixels: float = DISPLACED) -> AtomMap:
    """Every mask moved by so many pixels in a direction of its own; what leaves the image is lost."""
    height, width = masks.shape
    angles = rng.uniform(0, 2 * np.pi, masks.n_masks)
    moved = np.zeros((masks.n_masks, height, width), bool)
    for mask, angle, target in zip(masks.to_masks(), angles, moved, strict=True):
        down, right = (round(pixels * part) for part in (np.sin(angle), np.cos(angle)))
        to = np.s_[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
        of = np.s_[max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
        target[to] = mask[of]
    return AtomMap.from_masks(moved[moved.any(axis=(1, 2))], masks.shape)


def prepare_oracle(location: str, split: str, oracle: str, path: Path) -> None:
    """A store of a source, with these masks; its recipe says that they are true ones. Goes on where it stopped."""
    source = OracleSource(open_source(location, split), oracle)
    summary = prepare(source, path, PrepSettings(true_masks=True), workers=1)
    if summary.quarantined:
        raise RuntimeError(f"{path}: {summary.quarantined} images are quarantined")

"""Masks that nobody has in practice: those that SAM finds in the sharp pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator, PrepSettings, Source, open_source
from samdeblur.pipeline.coordinator import prepare
from samdeblur.pipeline.sources import ImagePair


@dataclass(frozen=True)
class SharpMasks:
    """A source that calls true what SAM finds in its sharp pictures."""

    source: Source

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
        return replace(pair, masks=_generator().generate(pair.sharp)[0])

    def subset(self, keys: Iterable[str]) -> SharpMasks:
        return SharpMasks(self.source.subset(keys))


@cache
def _generator() -> MaskGenerator:
    return MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)


def prepare_oracle(location: str, split: str, path: Path) -> None:
    """A store of a source, with these masks; its recipe says that they are true ones. Goes on where it stopped."""
    source = SharpMasks(open_source(location, split))
    summary = prepare(source, path, PrepSettings(true_masks=True), workers=1)
    if summary.quarantined:
        raise RuntimeError(f"{path}: {summary.quarantined} images are quarantined")

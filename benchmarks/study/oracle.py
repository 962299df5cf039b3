"""Masks that nobody has in practice: those that SAM finds in the sharp images, and true ones that were made worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from degrade import degraded

from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator, PrepSettings, Source, open_source
from samdeblur.pipeline.job.coordinator import prepare
from samdeblur.pipeline.sources.base import ImagePair


@dataclass(frozen=True)
class OracleSource:
    """A source whose true masks are those of an oracle."""

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
        return replace(pair, masks=degraded(pair.masks, self.oracle, int(key)))

    def subset(self, keys: Iterable[str]) -> OracleSource:
        return replace(self, source=self.source.subset(keys))


@cache
def _generator() -> MaskGenerator:
    return MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)


def prepare_oracle(location: str, split: str, oracle: str, path: Path) -> None:
    """A store of a source, with these masks; its recipe says that they are true ones. Goes on where it stopped."""
    source = OracleSource(open_source(location, split), oracle)
    summary = prepare(source, path, PrepSettings(true_masks=True), workers=1)
    if summary.quarantined:
        raise RuntimeError(f"{path}: {summary.quarantined} images are quarantined")

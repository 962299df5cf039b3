"""The embedded sample: photographs of scikit-image's wheel, cropped and blurred. Nothing is downloaded.

`train` and `test` share no photograph. `test-ood` is the test split under a blur no training image shows: longer paths,
clipped highlights, JPEG. `all` has the crops of both, blurred anew: to test what was trained on neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import skimage
from numpy.typing import NDArray

from samdeblur.pipeline.sources.base import ImagePair, SourceError
from samdeblur.pipeline.sources.blur import BlurModel
from samdeblur.storage.format.layout import pixel_digest


class Crop(NamedTuple):
    """A window of a photograph and the seed of its blur."""

    photo: str
    top: int
    left: int
    height: int
    width: int
    seed: int


MODEL = BlurModel()
OOD_MODEL = BlurModel(camera_path=(14.0, 24.0), object_path=(16.0, 30.0), gain=(1.4, 2.0), jpeg_quality=60)

_TRAIN = (
    Crop("astronaut", 0, 64, 288, 320, 1),
    Crop("astronaut", 200, 150, 300, 300, 2),
    Crop("astronaut", 0, 0, 256, 256, 3),
    Crop("rocket", 20, 60, 256, 384, 4),
    Crop("rocket", 150, 200, 260, 300, 5),
    Crop("rocket", 100, 300, 320, 256, 6),
    Crop("motorcycle_left", 20, 40, 320, 400, 7),
    Crop("motorcycle_left", 180, 300, 300, 360, 8),
    Crop("motorcycle_left", 100, 420, 384, 300, 9),
    Crop("motorcycle_left", 0, 200, 256, 320, 10),
    Crop("ihc", 30, 30, 280, 280, 11),
    Crop("ihc", 200, 180, 300, 320, 12),
    Crop("hubble_deep_field", 300, 300, 300, 360, 13),
    Crop("retina", 480, 300, 300, 330, 17),
    Crop("brick", 40, 60, 272, 300, 14),
    Crop("gravel", 100, 60, 256, 288, 15),
    Crop("grass", 60, 160, 256, 256, 16),
)
_TEST = (
    Crop("chelsea", 20, 60, 256, 320, 101),
    Crop("chelsea", 30, 120, 270, 300, 102),
    Crop("coffee", 20, 60, 300, 360, 103),
    Crop("coffee", 100, 220, 280, 360, 104),
    Crop("coffee", 0, 260, 256, 256, 105),
    Crop("camera", 40, 130, 288, 320, 106),
    Crop("camera", 180, 20, 260, 300, 107),
)

# The same crops under blur that differs in one respect, as the families of worlds.
FAMILIES = {
    "sample": MODEL,
    "sample-long": replace(MODEL, camera_path=(14.0, 28.0), object_path=(10.0, 30.0)),
    "sample-shake": replace(MODEL, objects=(0, 0)),
    "sample-local": replace(MODEL, camera_path=(0.0, 0.5), rotation=0.0, objects=(1, 1), object_path=(8.0, 24.0)),
    "sample-noisy": replace(MODEL, gain=(0.25, 0.6), shot_noise=2e-3, read_noise=0.01),
    "sample-bright": replace(MODEL, gain=(1.6, 2.6)),
    "sample-tone": replace(MODEL, gamma=1.4),
    "sample-jpeg": replace(MODEL, jpeg_quality=40),
    "sample-wide": replace(
        MODEL, camera_path=(0.0, 20.0), object_path=(0.0, 26.0), objects=(0, 3), rotation=1.0, gain=(0.8, 1.4)
    ),
}
VIEWS = {("sample-wide", "train"): 24}  # blurs of each crop; elsewhere one

SPLITS: dict[str, tuple[tuple[Crop, ...], BlurModel]] = {
    "train": (_TRAIN, MODEL),
    "test": (_TEST, MODEL),
    "test-ood": (tuple(crop._replace(seed=crop.seed + 100) for crop in _TEST), OOD_MODEL),
    "all": (tuple(crop._replace(seed=crop.seed + 300) for crop in (*_TRAIN, *_TEST)), MODEL),
}


@dataclass(frozen=True)
class SampleSource:
    """A split of the sample; pairs are rendered when they are read, the same ones each time."""

    split: str
    crops: dict[str, Crop]
    model: BlurModel
    dataset: str = "sample"
    digest: str = "pixels"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, location: str, split: str) -> SampleSource:
        """The source of `sample`, or of a family as in `sample-long`. Raises SourceError."""
        if location not in FAMILIES:
            raise SourceError(f"{location}: no such sample, choose from {', '.join(FAMILIES)}")
        if split not in SPLITS:
            raise SourceError(f"the sample has no split {split!r}, choose from {', '.join(SPLITS)}")
        crops, model = SPLITS[split]
        if location != "sample":
            if split == "test-ood":
                raise SourceError(f"{location}: a family has no split test-ood; it is out of distribution itself")
            model = FAMILIES[location]
        views = VIEWS.get((location, split), 1)
        crops = tuple(crop._replace(seed=crop.seed + 1000 * view) for crop in crops for view in range(views))
        named = dict(sorted((f"{crop.photo}-{crop.seed:03d}", crop) for crop in crops))
        return cls(split, named, model, location)

    @property
    def keys(self) -> Sequence[str]:
        return list(self.crops)

    def shape(self, key: str) -> tuple[int, int]:
        return self.crops[key].height, self.crops[key].width

    def read(self, key: str) -> ImagePair:
        crop = self.crops[key]
        window = _photo(crop.photo)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        blurred, sharp = self.model.render(window, crop.seed)
        return ImagePair(blurred, sharp, pixel_digest(blurred))

    def subset(self, keys: Iterable[str]) -> SampleSource:
        return replace(self, crops={key: self.crops[key] for key in keys})


@cache
def _photo(name: str) -> NDArray[np.uint8]:
    """A photograph of the wheel, (H, W, 3) uint8 RGB."""
    if name == "motorcycle_left":
        image = skimage.data.stereo_motorcycle()[0]
    else:
        image = getattr(skimage.data, {"ihc": "immunohistochemistry"}.get(name, name))()
    return np.ascontiguousarray(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)

"""The pictures of the docs: worlds, and the bundled Segment Anything model on photographs.

python benchmarks/pictures.py      # -> docs/images/worlds.jpg, docs/images/sam.jpg
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import skimage

from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.worlds import WorldSource
from samdeblur.storage.paint import paint_masks

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def save(name: str, rows: list[np.ndarray]) -> None:
    cv2.imwrite(str(IMAGES / name), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def main() -> None:
    """Draw both."""
    source = WorldSource.of("worlds:5:288", "val")
    worlds = [source.read(key) for key in source.keys]
    save(
        "worlds.jpg",
        [
            np.hstack([world.sharp for world in worlds]),
            np.hstack([world.blurred for world in worlds]),
            np.hstack([paint_masks(world.sharp, world.masks, 0.8) for world in worlds]),
        ],
    )
    generator = MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)
    columns = []
    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        photograph = getattr(skimage.data, name)()
        masks, _ = generator.generate(photograph)
        pair = [photograph, paint_masks(photograph, masks)]
        columns.append(np.vstack([cv2.resize(p, (p.shape[1] * 280 // p.shape[0], 280), interpolation=3) for p in pair]))
    save("sam.jpg", [np.hstack(columns)])


if __name__ == "__main__":
    main()

"""The images of the docs: worlds, families, and the bundled models on photographs that they have not seen.

python -m benchmarks.bundled.images      # -> worlds.jpg, families.jpg, sam.jpg and strip.jpg in docs/images
"""

from __future__ import annotations

import cv2
import numpy as np

from benchmarks.bundled.sam import PHOTOGRAPHS, photograph
from benchmarks.common.figures import IMAGES
from samdeblur.models import deblur, load_network, load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator, open_source
from samdeblur.pipeline.sources.sample import FAMILIES
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage.sharing.paint import paint_masks


def save(name: str, rows: list[np.ndarray]) -> None:
    cv2.imwrite(str(IMAGES / name), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def family(name: str) -> np.ndarray:
    """A scene and a photograph, sharp and blurred, the same ones in every family."""
    world = open_source(f"{name.replace('sample', 'worlds')}:20:192", "test").read("0000017")
    photo = open_source(name, "test").read("coffee-104")
    middle = np.s_[32:224, 32:224]
    columns = (world.sharp, world.blurred, photo.sharp[middle], photo.blurred[middle])
    label = np.full((192, 76, 3), 255, np.uint8)
    cv2.putText(
        label,
        name.replace("sample-", "").replace("sample", "as it is"),
        (6, 100),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
    return np.hstack([label, *columns])


def strip(generator: MaskGenerator) -> list[np.ndarray]:
    """The first window of each photograph of the sample's test split: blurred, its masks, deblurred, sharp."""
    source, network = open_source("sample", "test"), load_network("bundled")
    first = {key.rsplit("-", 1)[0]: key for key in reversed(source.keys)}
    rows = []
    for key in sorted(first.values()):
        pair = source.read(key)
        masks, _ = generator.generate(pair.blurred)
        shown = (pair.blurred, paint_masks(pair.blurred, masks), deblur(network, pair.blurred), pair.sharp)
        rows.append(np.hstack([image[:240, :300] for image in shown]))
    return rows


def main() -> None:
    """Draw all."""
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
    save("families.jpg", [family(name) for name in FAMILIES])
    generator = MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)
    columns = []
    for name in PHOTOGRAPHS:
        image = photograph(name)
        masks, _ = generator.generate(image)
        pair = [image, paint_masks(image, masks)]
        columns.append(np.vstack([cv2.resize(p, (p.shape[1] * 180 // p.shape[0], 180), interpolation=3) for p in pair]))
    save("sam.jpg", [np.hstack(columns)])
    save("strip.jpg", strip(generator))


if __name__ == "__main__":
    main()

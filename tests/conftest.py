"""What several test modules share. They cannot import this file, so helpers are fixtures that return functions."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from samdeblur.storage import AtomMap
from samdeblur.storage.format.layout import DONE, QUARANTINED, Header
from samdeblur.storage.writing.commits import Committer, ImageContent, ImageOutcome, StagedBlock, stage_block
from samdeblur.storage.writing.creation import create_store

torch.set_num_threads(1)  # pytest-xdist fills the cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background job ignores
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

Masks = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]


@pytest.fixture(scope="session")
def random_masks() -> Callable[[np.random.Generator, int, int, int], Masks]:
    """(rng, n, h, w) -> (n, h, w) bool: overlapping rectangles, ellipses, and parts of masks drawn before."""
    return _random_masks


def _random_masks(rng: np.random.Generator, n: int, h: int, w: int) -> Masks:
    rows, columns = np.indices((h, w))
    masks = np.zeros((n, h, w), bool)
    for k in range(n):
        (y, x), (size_y, size_x) = rng.uniform(0, (h, w)), 0.5 + rng.uniform(0, (h / 2, w / 2))
        dy, dx = np.abs(rows - y) / size_y, np.abs(columns - x) / size_x
        shape = (dy <= 1) & (dx <= 1) if k % 2 else dy**2 + dx**2 <= 1
        masks[k] = shape & masks[rng.integers(k)] if k % 3 == 2 else shape
    return masks


@pytest.fixture(scope="session")
def algorithm_1() -> Callable[[NDArray, Masks], NDArray[np.float64]]:
    """Algorithm 1 of the paper as written, a loop over dense masks: (S, H, W), (M, H, W) bool -> (S, H, W) float64."""
    return _algorithm_1


def _algorithm_1(features: NDArray, masks: Masks) -> NDArray[np.float64]:
    features = np.asarray(features, np.float64)
    pooled = np.zeros_like(features)
    for mask in [*masks, ~masks.any(axis=0)]:
        if mask.any():
            pooled[:, mask] += features[:, mask].mean(axis=1, keepdims=True)
    return pooled


@pytest.fixture(scope="session")
def dense_boxes() -> Callable[[Masks], NDArray[np.int64]]:
    """(M, H, W) bool -> (M, 4) boxes x, y, width, height; zeros for an empty mask."""
    return _dense_boxes


def _dense_boxes(masks: Masks) -> NDArray[np.int64]:
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = np.nonzero(mask)
            box[:] = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
    return boxes


@dataclass(frozen=True)
class StoreCase:
    """A small data set and the store made of it.

    Five blocks of two: images of several sizes; a quarantined image beside a done one; an image without masks; and a
    last block of one image that stays pending.
    """

    path: Path
    header: Header
    keys: list[str]
    shapes: NDArray[np.int32]
    masks: dict[str, Masks]  # of the images that are done
    contents: list[ImageContent | None]  # None: quarantined or pending
    quarantined: dict[str, str]  # key -> reason

    def at(self, path: Path) -> StoreCase:
        return dataclasses.replace(self, path=path)

    def create(self) -> Path:
        """The store with every image pending."""
        create_store(self.path, self.header, self.keys, self.shapes)
        return self.path

    def stage(self, committer: Committer, block: int) -> StagedBlock:
        positions = self.header.block_range(block)
        contents = [self.contents[i] for i in positions]
        staging = committer.staging(block)
        digests = stage_block(self.path, self.header, staging, block, contents)
        return StagedBlock(block, str(staging), tuple(self._outcome(i) for i in positions), digests)

    def _outcome(self, position: int) -> ImageOutcome:
        content = self.contents[position]
        if content is None:
            return ImageOutcome(QUARANTINED, error=self.quarantined.get(self.keys[position], "not meant to be done"))
        image = np.zeros((*content.atoms.shape, 3), np.uint8) if content.blurred is None else content.blurred
        size = b"".join(side.to_bytes(8, "little") for side in image.shape[:2])
        counts = content.atoms.n_masks, content.atoms.n_atoms, len(content.atoms.pairs)
        return ImageOutcome(DONE, hashlib.sha256(size + image.tobytes()).digest(), counts)

    def files(self) -> dict[str, bytes]:
        """Every file of the store and its bytes."""
        return {
            str(file.relative_to(self.path)): file.read_bytes()
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }


@pytest.fixture(scope="session")
def store_case() -> StoreCase:
    """The data set of `StoreCase` with no store on disk: place it with `.at(path)`, then `.create()` and `.stage()`."""
    rng = np.random.default_rng(7)
    images = [  # key, (height, width), masks or None
        ("GOPR0372_07_00/000047", (300, 280), 12),
        ("GOPR0372_07_00/000048", (40, 50), 5),
        ("nuit/été_夜", (64, 300), 7),
        ("scene/unreadable", (33, 20), None),
        ("scene/one_pixel", (1, 1), 1),
        ("scene/small", (20, 30), 3),
        ("scene/without_masks", (17, 256), 0),
        ("scene/too_many", (30, 30), None),
        ("scene/not_yet", (30, 31), None),
    ]
    keys, shapes, numbers = zip(*images, strict=True)
    masks = {key: _random_masks(rng, n, *shape) for key, shape, n in images if n is not None}
    masks["scene/one_pixel"][:] = True
    contents = [_content(rng, masks[key]) if n is not None else None for key, n in zip(keys, numbers, strict=True)]
    recipe = {"segmenter": {"points_per_side": 32, "name": "Segment Anything é"}, "mode": "exact"}
    header = Header("gopro", "train", recipe, "pixels", len(keys), (512, 512), 40, 2, images=True)
    quarantined = {"scene/unreadable": "cannot be read: file is truncated", "scene/too_many": "70000 atoms"}
    return StoreCase(Path(), header, list(keys), np.array(shapes, np.int32), masks, contents, quarantined)


def _content(rng: np.random.Generator, masks: Masks) -> ImageContent:
    boxes = _dense_boxes(masks)
    records = {"area": masks.sum(axis=(1, 2)).astype(float)}  # crop_box is left out: stored as NaN
    records |= {f"bbox_{name}": boxes[:, i].astype(float) for i, name in enumerate("xywh")}
    records |= {name: rng.random(len(masks)) for name in ("predicted_iou", "stability_score", "point_x", "point_y")}
    blurred, sharp = rng.integers(0, 256, (2, *masks.shape[1:], 3), np.uint8)
    return ImageContent(AtomMap.from_masks(masks, masks.shape[1:]), records, blurred, sharp)


@pytest.fixture(scope="session")
def finished_store(store_case: StoreCase, tmp_path_factory: pytest.TempPathFactory) -> StoreCase:
    """The store on disk, every block but the last committed. For reading only."""
    case = store_case.at(tmp_path_factory.mktemp("finished") / "gopro.zarr")
    case.create()
    committer = Committer(case.path)
    committer.commit([case.stage(committer, block) for block in range(case.header.n_blocks - 1)])
    committer.close()
    return case


@pytest.fixture
def store_copy(finished_store: StoreCase, tmp_path: Path) -> StoreCase:
    """A copy of the finished store to damage."""
    return finished_store.at(Path(shutil.copytree(finished_store.path, tmp_path / "copy.zarr")))


@pytest.fixture(scope="session")
def random_sam() -> Callable[..., Sam]:
    """(image_size=64, seed=0) -> a small Sam in evaluation mode with random weights; image_size a multiple of 16."""
    return _random_sam


def _random_sam(image_size: int = 64, seed: int = 0) -> Sam:
    grid = image_size // 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = Sam(
            ImageEncoderViT(
                img_size=image_size,
                embed_dim=32,
                depth=2,
                num_heads=2,
                out_chans=32,
                use_rel_pos=True,
                qkv_bias=True,
                window_size=2,
                global_attn_indexes=(1,),
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            ),
            PromptEncoder(32, (grid, grid), (image_size, image_size), 16),
            MaskDecoder(
                transformer_dim=32,
                transformer=TwoWayTransformer(2, 32, 8, 64),
                iou_head_depth=3,
                iou_head_hidden_dim=32,
            ),
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
        )
        for parameter in sam.parameters():
            if not parameter.any():  # position embeddings and biases start at zero, where a mistake would not show
                nn.init.normal_(parameter, std=0.02)
    return sam.eval()


@pytest.fixture(scope="session")
def whole_store(store_case: StoreCase, tmp_path_factory: pytest.TempPathFactory) -> StoreCase:
    """The store with every block committed, so that it can be shared. For reading only."""
    case = store_case.at(tmp_path_factory.mktemp("whole") / "whole.zarr")
    case.create()
    committer = Committer(case.path)
    committer.commit([case.stage(committer, block) for block in range(case.header.n_blocks)])
    committer.close()
    return case


@pytest.fixture(scope="session")
def random_image() -> Callable[[int, int, int], ImageArray]:
    """(seed, height, width) -> (H, W, 3) uint8: twelve patches of random colours."""
    return _random_image


def _random_image(seed: int, height: int, width: int) -> ImageArray:
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope="session")
def save() -> Callable[[Path, ImageArray], Path]:
    """(path, image) -> path: an image file of the kind its suffix says, in folders made for it."""
    return _save


def _save(path: Path, image: ImageArray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
    return path


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., Path]:
    """(folder, {name: (height, width)}, blurred="blur", sharp="sharp", suffix=".png") -> folder, with those pairs."""
    return _write_pairs


def _write_pairs(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    blurred: str = "blur",
    sharp: str = "sharp",
    suffix: str = ".png",
) -> Path:
    for seed, (name, shape) in enumerate(shapes.items()):
        image = _random_image(seed, *shape)
        _save(folder / sharp / f"{name}{suffix}", image)
        _save(folder / blurred / f"{name}{suffix}", cv2.blur(image, (5, 5)))
    return folder

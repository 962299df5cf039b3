"""Procedural worlds: scenes of overlapping textured objects, with exact nested masks and rendered motion.

A scene is built back to front: a background of a few regions, then things with power-law sizes that hide each other
(the dead-leaves model: Matheron, 1968; Lee, Mumford and Huang, 2001). A thing is one object, or a group of objects that
move together; an object may have parts in other colours. The exposure is a mean of sub-frames in linear light in which
the camera moves and each thing moves over it. The sharp image and the masks show the middle of the exposure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.sources.base import ImagePair, SourceError
from samdeblur.pipeline.sources.camera import Sensor, encode, motion, random_path
from samdeblur.pipeline.sources.textures import body, colour, cover, limbs, near_colour, noise, texture
from samdeblur.storage import AtomMap
from samdeblur.storage.format.layout import pixel_digest

Light = NDArray[np.float32]


class Scene(NamedTuple):
    """A rendered world: images (H, W, 3) uint8 RGB and the visible part of every region, object, part and group."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    masks: AtomMap


@dataclass(frozen=True)
class Look:
    """What surfaces are like; shares are of the things of a scene.

    Attributes:
        patterns: share of the surfaces with stripes, checks or dots.
        solid: share of the objects shaded as bodies under the scene's light, some with a highlight.
        shadows: share that cast a shadow away from that light; None for shadows in any direction.
        limbs: share of the objects with thin parts that stick out.
        defocus: largest deviation of the blur of what lies far behind, pixels.
    """

    patterns: float = 0.35
    solid: float = 0.0
    shadows: float | None = None
    limbs: float = 0.0
    defocus: float = 0.0


class Layer(NamedTuple):
    """A thing: premultiplied linear RGBA (h, w, 4), region numbers (h, w) with 0 outside it, its corner."""

    light: Light
    labels: NDArray[np.int32]
    top: int
    left: int


@dataclass(frozen=True)
class WorldModel:
    """What worlds look like and how they move; ranges are (low, high) and drawn uniformly.

    Attributes:
        size: height and width in pixels.
        things: number of things over the background; far fewer are seen whole.
        smallest, largest: bounds of the radii in a scene as shares of the shorter side; their density is 1/r^3.
        camera_path, object_path: lengths of the paths during the exposure, pixels.
        moving: share of the things that move over the background.
        movers: exactly so many of the larger things in front move instead; None goes by `moving`.
        camera_turn, object_turn: largest rotations during the exposure, degrees.
        lamps: share of the things that are many times brighter than the rest and saturate.
        gain: exposure factor.
        jpeg_quality: range, or None for lossless.
        min_area: smallest mask, as a share of the image.
        look: of the surfaces.
    """

    size: tuple[int, int] = (384, 384)
    things: tuple[int, int] = (5, 32)
    smallest: tuple[float, float] = (0.04, 0.12)
    largest: float = 0.45
    camera_path: tuple[float, float] = (2.0, 14.0)
    object_path: tuple[float, float] = (2.0, 18.0)
    moving: float = 0.4
    movers: int | None = None
    camera_turn: float = 1.0
    object_turn: float = 4.0
    lamps: float = 0.03
    gain: tuple[float, float] = (0.8, 1.3)
    sensor: Sensor = field(default_factory=Sensor)
    jpeg_quality: tuple[int, int] | None = None
    min_area: float = 0.001
    look: Look = field(default_factory=Look)

    def render(self, seed: int | Sequence[int]) -> Scene:
        """The world of a seed. Same seed, same scene."""
        rng = np.random.default_rng(seed)
        margin = int(np.ceil(self.camera_path[1] / 2)) + 8
        shape = (self.size[0] + 2 * margin, self.size[1] + 2 * margin)
        nodes = _Nodes()
        background, labels = _background(rng, shape, nodes, self.look)
        layers = self._things(rng, shape, nodes)
        if self.look.defocus:
            background, layers = _defocused(rng, background, layers, self.look.defocus)
        lamp = np.exp(rng.uniform(0.1, 0.5) * noise(rng, *shape, smooth=True))[..., None]
        lamp = lamp * np.float32(rng.uniform(*self.gain))

        sharp = background.copy()
        for layer in layers:
            _paint(sharp, layer)
            window = labels[layer.top :, layer.left :][: layer.labels.shape[0], : layer.labels.shape[1]]
            np.copyto(window, layer.labels, where=layer.labels > 0)
        exposure = self._expose(rng, background, layers)

        inside = np.s_[margin : margin + self.size[0], margin : margin + self.size[1]]
        sensor = self.sensor
        if self.jpeg_quality is not None:
            sensor = replace(sensor, jpeg_quality=int(rng.integers(*self.jpeg_quality, endpoint=True)))
        blurred = sensor.expose((exposure * lamp)[inside], rng)
        visible = nodes.masks(labels[inside], self.min_area)
        middle = encode((sharp[..., :3] * lamp)[inside], sensor.gamma)
        return Scene(blurred, middle, AtomMap.from_masks(visible, self.size))

    def _things(self, rng: np.random.Generator, shape: tuple[int, int], nodes: _Nodes) -> list[Layer]:
        """Layers, back to front: large things tend to lie behind small ones."""
        count = int(rng.integers(*self.things, endpoint=True))
        low, high = (share * min(self.size) for share in (rng.uniform(*self.smallest), self.largest))
        radii = (low**-2 - rng.random(count) * (low**-2 - high**-2)) ** -0.5
        order = np.argsort(-np.log(radii) + rng.normal(0, 0.6, count))
        sun = rng.uniform(0, 2 * np.pi) if self.look.solid or self.look.shadows is not None else 0.0
        layers = []
        for radius in radii[order]:
            centre = rng.uniform(0, 1, 2) * (shape[1], shape[0])
            layer = _thing(rng, radius, centre, shape, nodes, rng.random() < self.lamps, self.look, sun)
            if layer is not None:
                layers.append(layer)
        return layers

    def _expose(self, rng: np.random.Generator, background: Light, layers: list[Layer]) -> Light:
        """The mean light of the exposure."""
        camera_length = rng.uniform(*self.camera_path)
        lengths = self._own_lengths(rng, layers)
        steps = 2 * int(np.clip(np.ceil((camera_length + max(lengths, default=0)) / 3), 3, 12)) + 1
        centre = np.array([background.shape[1] - 1, background.shape[0] - 1]) / 2
        views = _journey(rng, camera_length, self.camera_turn, steps, centre)
        own = [
            _journey(rng, length, self.object_turn, steps, _middle(layer)) if length else None
            for layer, length in zip(layers, lengths, strict=True)
        ]
        total = np.zeros_like(background)
        for step in range(steps):
            size = (background.shape[1], background.shape[0])
            frame = cv2.warpAffine(background, views[step], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            for layer, path in zip(layers, own, strict=True):
                _paint(frame, layer, views[step] if path is None else _after(views[step], path[step]))
            total += frame
        return total[..., :3] / np.float32(steps)

    def _own_lengths(self, rng: np.random.Generator, layers: list[Layer]) -> list[float]:
        """How far each layer moves over the background, pixels."""
        if self.movers is None:
            return [rng.uniform(*self.object_path) if rng.random() < self.moving else 0.0 for _ in layers]
        # Covers of things, larger for those in front, which more of is seen
        weights = [layer.labels.size * (position + 1) for position, layer in enumerate(layers)]
        chosen = np.argsort(weights)[::-1][: self.movers].tolist()
        return [rng.uniform(*self.object_path) if position in chosen else 0.0 for position in range(len(layers))]


class _Nodes:
    """The tree of a scene: every node is the set of leaf regions it consists of. Leaf 0 is no region."""

    def __init__(self) -> None:
        self.leaves = 0
        self.sets: list[list[int]] = []

    def leaf(self) -> int:
        self.leaves += 1
        return self.leaves

    def masks(self, labels: NDArray[np.int32], min_area: float) -> list[NDArray[np.bool_]]:
        """Visible masks, large first; a node that nearly fills its parent adds nothing and is left out."""
        member = np.zeros((len(self.sets), self.leaves + 1), bool)
        for row, leaves in zip(member, self.sets, strict=True):
            row[leaves] = True
        areas = np.bincount(labels.ravel(), minlength=self.leaves + 1)
        shared = (member * areas) @ member.T.astype(np.int64)
        sizes = shared.diagonal()
        kept: list[int] = []
        for node in np.argsort(-sizes, kind="stable"):
            if sizes[node] >= min_area * labels.size and (shared[node, kept] < 0.9 * sizes[kept]).all():
                kept.append(int(node))
        return [member[node][labels] for node in kept]


def _background(
    rng: np.random.Generator, shape: tuple[int, int], nodes: _Nodes, look: Look
) -> tuple[Light, NDArray[np.int32]]:
    """One to four regions with uneven borders, RGBA (H, W, 4), and their numbers."""
    tree = nodes.leaf()
    nodes.sets.append([tree])
    light = texture(rng, *shape, colour(rng), look.patterns)
    labels = np.full(shape, tree, np.int32)
    x, y = (
        np.arange(shape[1], dtype=np.float32) / shape[1] - 0.5,
        np.arange(shape[0], dtype=np.float32) / shape[0] - 0.5,
    )
    for _ in range(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15])):
        angle = rng.normal(np.pi / 2, 0.15) if rng.random() < 0.6 else rng.uniform(0, 2 * np.pi)
        field = np.cos(angle) * x + np.sin(angle) * y[:, None] - rng.uniform(-0.35, 0.35)
        field = (field + rng.choice([0, 0.01, 0.05]) * noise(rng, *shape, smooth=True)) * shape[0]
        weight = np.clip(field + 0.5, 0, 1)[..., None]
        light = light * (1 - weight) + texture(rng, *shape, colour(rng), look.patterns) * weight
        leaf = nodes.leaf()
        nodes.sets.append([leaf])
        labels[field > 0] = leaf
    return np.dstack([light, np.ones_like(labels, np.float32)]).astype(np.float32), labels


def _thing(
    rng: np.random.Generator,
    radius: float,
    centre: NDArray[np.float64],
    shape: tuple[int, int],
    nodes: _Nodes,
    lamp: bool,
    look: Look,
    sun: float,
) -> Layer | None:
    """A group of one to four objects as one layer, or None when it lies outside the canvas."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.72, 0.12, 0.1, 0.06]))
    offsets = rng.normal(0, 0.6 * radius, (count, 2)) if count > 1 else np.zeros((1, 2))
    radii = radius * (rng.uniform(0.45, 0.8, count) if count > 1 else np.ones(1))
    reach = 1.9 * radii[:, None] + 4
    left, top = np.maximum(0, np.floor((centre + offsets - reach).min(axis=0))).astype(int)
    right, bottom = np.minimum(shape[::-1], np.ceil((centre + offsets + reach).max(axis=0))).astype(int)
    if right - left < 4 or bottom - top < 4:
        return None
    light = np.zeros((bottom - top, right - left, 4), np.float32)
    labels = np.zeros(light.shape[:2], np.int32)
    base = colour(rng)
    group: list[int] = []
    for offset, own_radius in zip(offsets, radii, strict=True):
        tint = near_colour(rng, base, 0.35) if count > 1 else base
        group += _object(rng, light, labels, own_radius, centre + offset - (left, top), tint, nodes, look, sun)
    if count > 1:
        nodes.sets.append(group)
    if lamp:
        light[..., :3] *= rng.uniform(3, 12)
    if look.shadows is not None:
        if rng.random() < look.shadows:
            away = np.array([np.cos(sun), np.sin(sun)]) * -radius * rng.uniform(0.05, 0.35)
            _shade_below(light, away, radius * rng.uniform(0.04, 0.3), rng.uniform(0.2, 0.7))
    elif rng.random() < 0.4:
        _cast_shadow(rng, light, radius)
    return Layer(light, labels, int(top), int(left))


def _object(
    rng: np.random.Generator,
    light: Light,
    labels: NDArray[np.int32],
    radius: float,
    centre: NDArray[np.float64],
    base: NDArray[np.float32],
    nodes: _Nodes,
    look: Look,
    sun: float,
) -> list[int]:
    """Paint an object and its parts into a layer; returns its regions."""
    outline = cover(rng, radius, centre, labels.shape)
    if look.limbs and rng.random() < look.limbs:
        outline = np.maximum(outline, limbs(rng, radius, centre, labels.shape))
    shading = None
    if look.solid and rng.random() < look.solid:
        shading = body(rng, outline, radius, sun)
    elif rng.random() < 0.35:  # darker towards its border, as round things are
        depth = cv2.distanceTransform((outline > 127).astype(np.uint8), cv2.DIST_L2, 3)
        shading = 1 - rng.uniform(0.3, 0.8) * np.exp(-depth / (0.35 * radius))[..., None].astype(np.float32)
    regions = [nodes.leaf()]
    _paint_object(rng, light, labels, outline, regions[0], base, shading, look.patterns)
    for _ in range(rng.choice(5, p=[0.45, 0.2, 0.15, 0.12, 0.08])):
        place = centre + rng.normal(0, 0.45 * radius, 2)
        part = np.minimum(cover(rng, radius * rng.uniform(0.2, 0.6), place, labels.shape), outline)
        leaf = nodes.leaf()
        tint = near_colour(rng, base, 0.6) if rng.random() < 0.5 else colour(rng)
        _paint_object(rng, light, labels, part, leaf, tint, shading, look.patterns)
        nodes.sets.append([leaf])
        regions.append(leaf)
    nodes.sets.append(regions)
    return regions


def _paint_object(
    rng: np.random.Generator,
    light: Light,
    labels: NDArray[np.int32],
    outline: NDArray[np.uint8],
    leaf: int,
    base: NDArray[np.float32],
    shading: Light | None,
    patterns: float,
) -> None:
    """Paint a textured outline over what a layer holds."""
    rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
    if not len(rows):
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = outline[box][..., None] / np.float32(255)
    surface = texture(rng, alpha.shape[0], alpha.shape[1], base, patterns)
    if shading is not None:
        surface = surface * shading[box]
    light[box] = light[box] * (1 - alpha) + np.concatenate([surface * alpha, alpha], axis=2)
    labels[box][outline[box] > 127] = leaf


def _cast_shadow(rng: np.random.Generator, light: Light, radius: float) -> None:
    """Put a soft dark copy of a layer's cover beneath it."""
    shift = rng.normal(0, 0.12 * radius + 1, 2)
    _shade_below(light, shift, 0.06 * radius, rng.uniform(0.2, 0.7))


def _shade_below(light: Light, shift: NDArray[np.float64], softness: float, strength: float) -> None:
    cover_ = cv2.warpAffine(light[..., 3], np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), light.shape[1::-1])
    cover_ = cv2.GaussianBlur(cover_, (0, 0), max(1.0, softness)) * np.float32(strength)
    light[..., 3] += cover_ * (1 - light[..., 3])


def _defocused(
    rng: np.random.Generator, background: Light, layers: list[Layer], most: float
) -> tuple[Light, list[Layer]]:
    """The scene with its farther part out of focus: the blur falls off towards the front."""
    sigma = rng.uniform(0, most) * rng.random()
    reach = rng.uniform(0.2, 1.0) * max(len(layers), 1)
    blurred = []
    for number, layer in enumerate(layers):
        own = sigma * max(0.0, 1 - (number + 1) / reach)
        blurred.append(layer._replace(light=cv2.GaussianBlur(layer.light, (0, 0), own)) if own > 0.3 else layer)
    return (cv2.GaussianBlur(background, (0, 0), sigma) if sigma > 0.3 else background), blurred


def _journey(
    rng: np.random.Generator, length: float, turn: float, steps: int, centre: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """2x3 matrices of a path with a rotation about a centre; the identity in the middle step."""
    path = random_path(rng, length, steps)
    angles = np.deg2rad(np.linspace(-0.5, 0.5, steps) * rng.uniform(-turn, turn))
    return [motion(shift, angle, centre) for shift, angle in zip(path, angles, strict=True)]


def _middle(layer: Layer) -> NDArray[np.float64]:
    return np.array([layer.left + layer.labels.shape[1] / 2, layer.top + layer.labels.shape[0] / 2])


def _after(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 2x3 matrix that does one motion and then another."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def _paint(frame: Light, layer: Layer, matrix: NDArray[np.float64] | None = None) -> None:
    """Put a layer over a frame (H, W, 4), moved by a matrix in the coordinates of the frame."""
    height, width = layer.labels.shape
    top, left, light = layer.top, layer.left, layer.light
    if matrix is not None:
        corners = np.array([(left, top), (left + width, top), (left, top + height), (left + width, top + height)])
        moved = corners @ matrix[:, :2].T + matrix[:, 2]
        new_left, new_top = (int(side) for side in np.maximum(0, np.floor(moved.min(axis=0)) - 1))
        right, bottom = (int(side) for side in np.minimum(frame.shape[1::-1], np.ceil(moved.max(axis=0)) + 2))
        if right <= new_left or bottom <= new_top:
            return
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ (left, top) - (new_left, new_top)
        top, left, size = new_top, new_left, (right - new_left, bottom - new_top)
        light = cv2.warpAffine(light, local, size, flags=cv2.INTER_LINEAR)
    window = frame[top : top + light.shape[0], left : left + light.shape[1]]
    through = 1 - cv2.extractChannel(light, 3)
    cv2.multiply(window, cv2.merge([through] * 4), dst=window)
    cv2.add(window, light, dst=window)


SPLITS = {"train": 0, "val": 1, "test": 2, "test-ood": 3}
MODEL = WorldModel()
OOD_MODEL = replace(MODEL, camera_path=(14.0, 28.0), object_path=(8.0, 36.0), gain=(1.3, 2.2), jpeg_quality=(40, 80))
STILL = {"camera_path": (0.0, 0.5), "camera_turn": 0.0}

# Worlds that differ in one respect: blur length, what moves, noise, saturation, tone curve, compression; and `wide`, to
# train on: any blur from none, and surfaces more like those of photographs.
FAMILIES = {
    "": MODEL,
    "long": replace(MODEL, camera_path=(14.0, 28.0), object_path=(10.0, 30.0)),
    "shake": replace(MODEL, moving=0.0),
    "local": replace(MODEL, **STILL, movers=1, object_path=(8.0, 24.0)),  # type: ignore[arg-type]
    "noisy": replace(MODEL, sensor=Sensor(shot_noise=2e-3, read_noise=0.01), gain=(0.25, 0.6)),
    "bright": replace(MODEL, gain=(1.6, 2.6), lamps=0.12),
    "tone": replace(MODEL, sensor=Sensor(gamma=1.4)),
    "jpeg": replace(MODEL, jpeg_quality=(25, 60)),
    "wide": replace(
        MODEL,
        camera_path=(0.0, 20.0),
        object_path=(0.0, 26.0),
        gain=(0.7, 1.6),
        look=Look(patterns=0.1, solid=0.55, shadows=0.55, limbs=0.2, defocus=4.0),
    ),
}
_COUNTS = {"train": 1000, "val": 50, "test": 100, "test-ood": 100}


@dataclass(frozen=True)
class WorldSource:
    """A split of procedural worlds; scenes are rendered when they are read, the same ones each time."""

    split: str
    numbers: tuple[int, ...]
    model: WorldModel
    dataset: str = "worlds"
    digest: str = "pixels"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, location: str, split: str) -> WorldSource:
        """The source of `worlds`, `worlds:COUNT` or `worlds:COUNT:SIZE`, or of a family as in `worlds-long:COUNT`.

        Raises SourceError.
        """
        match = re.fullmatch(r"worlds(?:-([a-z]+))?(?::([1-9]\d{0,6})(?::([1-9]\d{1,3}))?)?", location)
        if match is None:
            raise SourceError(f"{location}: write worlds, worlds:COUNT or worlds:COUNT:SIZE, such as worlds:200:256")
        family, count, size = match.groups()
        if family and family not in FAMILIES:
            known = ", ".join(f"worlds-{name}" for name in FAMILIES if name)
            raise SourceError(f"{location}: no such family of worlds, choose from {known}")
        if split not in SPLITS:
            raise SourceError(f"worlds have no split {split!r}, choose from {', '.join(SPLITS)}")
        if family and split == "test-ood":
            raise SourceError(f"{location}: a family has no split test-ood; it is out of distribution itself")
        model = OOD_MODEL if split == "test-ood" else FAMILIES[family or ""]
        if size:
            model = replace(model, size=(int(size), int(size)))
        return cls(split, tuple(range(int(count or _COUNTS[split]))), model, f"worlds-{family}" if family else "worlds")

    @property
    def keys(self) -> Sequence[str]:
        return [f"{number:07d}" for number in self.numbers]

    def shape(self, key: str) -> tuple[int, int]:
        return self.model.size

    def read(self, key: str) -> ImagePair:
        scene = self.model.render((SPLITS[self.split], int(key)))
        return ImagePair(scene.blurred, scene.sharp, pixel_digest(scene.blurred), scene.masks)

    def subset(self, keys: Iterable[str]) -> WorldSource:
        return replace(self, numbers=tuple(int(key) for key in keys))

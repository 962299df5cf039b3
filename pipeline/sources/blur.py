"""A model of camera shake and moving objects that blurs a sharp photograph.

The exposure is a mean of sub-frames in linear light. In each, the whole image is moved along a smooth random camera
path (translation and a little rotation, so that the blur differs over the image) and a few regions move along paths
of their own over it, uncovering a background filled in behind them. Then come exposure gain with clipping, shot and
read noise, gamma and rounding to 8 bits, and JPEG when asked. The sharp image is the photograph (under the same gain),
which is where everything stands in the middle of the exposure.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.sources.camera import GAMMA, Sensor, decode, encode, motion, random_path

SUB_FRAMES = 33


@dataclass(frozen=True)
class BlurModel:
    """Strength of the blur; ranges are (low, high) and drawn uniformly.

    Attributes:
        camera_path: length of the camera's path, pixels.
        object_path: length of an object's own path, pixels.
        objects: number of moving regions.
        rotation: largest rotation during the exposure, degrees.
        gain: exposure factor; above 1 highlights clip.
        shot_noise, read_noise: variance per unit of linear light, and standard deviation, of the blurred image.
        jpeg_quality: None for lossless.
        gamma: of the tone curve, of blurred and sharp alike.
    """

    camera_path: tuple[float, float] = (4.0, 12.0)
    object_path: tuple[float, float] = (6.0, 16.0)
    objects: tuple[int, int] = (1, 3)
    rotation: float = 0.6
    gain: tuple[float, float] = (1.0, 1.0)
    shot_noise: float = 2e-5
    read_noise: float = 1e-3
    jpeg_quality: int | None = None
    gamma: float = GAMMA

    def render(self, photo: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Blur a photograph (H, W, 3) uint8 RGB; returns (blurred, sharp) of the same kind. Same seed, same result."""
        rng = np.random.default_rng(seed)
        scene = decode(photo)
        height, width = scene.shape[:2]
        camera = random_path(rng, rng.uniform(*self.camera_path), SUB_FRAMES)
        angles = np.deg2rad(random_path(rng, 1.0, SUB_FRAMES)[:, 0] * rng.uniform(0, self.rotation))
        layers = [
            (_region(rng, height, width), random_path(rng, rng.uniform(*self.object_path), SUB_FRAMES))
            for _ in range(rng.integers(*self.objects, endpoint=True))
        ]
        background = _fill_in(scene, [region for region, _ in layers])
        moving = [(np.dstack([scene * region[..., None], region]), path) for region, path in layers]

        centre = np.array([width - 1, height - 1]) / 2
        total = np.zeros_like(scene)
        for step in range(SUB_FRAMES):
            view = motion(camera[step], angles[step], centre)
            frame = _warp(background, view)
            for layer, path in moving:
                moved = _warp(layer, _shifted(view, path[step]))
                frame = frame * (1 - moved[..., 3:]) + moved[..., :3]
            total += frame

        gain = rng.uniform(*self.gain)
        sensor = Sensor(self.shot_noise, self.read_noise, self.jpeg_quality, self.gamma)
        blurred = sensor.expose(total * np.float32(gain / SUB_FRAMES), rng)
        return blurred, encode(scene * np.float32(gain), self.gamma)


def _region(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """(H, W) float32 cover of a random star-shaped region, soft over two pixels at its border."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = sum(rng.normal(0, 0.12) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    radius = min(height, width) * rng.uniform(0.12, 0.25) * np.clip(1 + waves, 0.4, 1.8)
    centre = np.array([rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height])
    outline = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    region = np.zeros((height, width), np.float32)
    cv2.fillPoly(region, [np.round(outline).astype(np.int32)], 1.0)
    return cv2.GaussianBlur(region, (0, 0), 1.0)


def _fill_in(scene: NDArray[np.float32], regions: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The scene without its moving regions, filled in from around them."""
    if not regions:
        return scene
    hidden = (np.max(regions, axis=0) > 0).astype(np.uint8)
    filled = cv2.inpaint(encode(scene), hidden, 3, cv2.INPAINT_TELEA).astype(np.float32) / 255
    return np.where(hidden[..., None] > 0, filled**GAMMA, scene).astype(np.float32)


def _shifted(matrix: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([matrix[:, :2], matrix[:, 2] + shift])


def _warp(layer: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    size = (layer.shape[1], layer.shape[0])
    return cv2.warpAffine(layer, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

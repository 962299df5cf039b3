"""What a camera does to linear light: paths during the exposure, clipping, noise, gamma and JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

GAMMA = 2.2


@dataclass(frozen=True)
class Sensor:
    """From the mean light of an exposure to 8 bits.

    Attributes:
        shot_noise: variance per unit of linear light.
        read_noise: standard deviation in linear light.
        jpeg_quality: None for lossless.
        gamma: of the tone curve; light ** (1 / gamma) becomes 8 bits.
    """

    shot_noise: float = 2e-5
    read_noise: float = 1e-3
    jpeg_quality: int | None = None
    gamma: float = GAMMA

    def expose(self, light: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Clip, add noise, encode: (H, W, 3) float32 linear light of any brightness to uint8 RGB."""
        exposed = np.clip(light, 0, 1)
        noise = rng.standard_normal(exposed.shape, np.float32)
        exposed += noise * np.sqrt(self.shot_noise * exposed + self.read_noise**2).astype(np.float32)
        image = encode(exposed, self.gamma)
        if self.jpeg_quality is None:
            return image
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])
        return cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)


def encode(linear: NDArray[np.float32], gamma: float = GAMMA) -> NDArray[np.uint8]:
    """Linear light, clipped to [0, 1], to 8 bits."""
    return np.round(np.clip(linear, 0, 1) ** np.float32(1 / gamma) * 255).astype(np.uint8)


def decode(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8 bits to linear light in [0, 1]."""
    return np.power(image / np.float32(255), np.float32(GAMMA))


def random_path(rng: np.random.Generator, length: float, steps: int) -> NDArray[np.float64]:
    """(steps, 2) positions x, y of a smooth random path of a length, at the origin in the middle step."""
    turns = np.cumsum(rng.normal(0, 0.15, steps)) + rng.uniform(0, 2 * np.pi)
    speed = 1 + 0.5 * np.sin(np.linspace(0, np.pi, steps) * rng.uniform(0, 2) + rng.uniform(0, np.pi))
    moves = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (speed / speed.sum() * length)[:, None]
    positions = np.cumsum(moves, axis=0)
    return positions - positions[steps // 2]


def motion(shift: NDArray[np.float64], angle: float, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """2x3 matrix: rotation by an angle (radians) about a centre (x, y), then a shift."""
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([rotation, centre - rotation @ centre + shift])

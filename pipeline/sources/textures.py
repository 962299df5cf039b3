"""Colours, textures and outlines of procedural objects. All light is linear; everything follows from the generator."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.sources.camera import GAMMA

_BANK_SIZE = 512
_BANK_FIELDS = 24


@cache
def noise_bank() -> NDArray[np.float32]:
    """(24, 512, 512) periodic noise fields, mean 0 and deviation 1, with amplitude spectra from 1/f^0.7 to 1/f^2.

    Natural images fall off about as 1/f (Field, 1987).
    """
    rng = np.random.default_rng(2309_02270)
    row, column = np.meshgrid(np.fft.fftfreq(_BANK_SIZE), np.fft.rfftfreq(_BANK_SIZE), indexing="ij")
    frequency = np.hypot(row, column)
    frequency[0, 0] = np.inf
    fields = []
    for exponent in np.linspace(0.7, 2.0, _BANK_FIELDS):
        spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        field = np.fft.irfft2(spectrum / frequency**exponent, s=(_BANK_SIZE, _BANK_SIZE))
        fields.append((field - field.mean()) / field.std())
    return np.array(fields, np.float32)


def noise(rng: np.random.Generator, height: int, width: int, smooth: bool = False) -> NDArray[np.float32]:
    """(height, width) of a random field of the bank, of one of its six smoothest if asked."""
    field = noise_bank()[rng.integers(_BANK_FIELDS - 6 if smooth else 0, _BANK_FIELDS)]
    top, left = rng.integers(0, _BANK_SIZE, 2)
    if top + height <= _BANK_SIZE and left + width <= _BANK_SIZE:
        return field[top : top + height, left : left + width]
    rows, columns = np.arange(top, top + height) % _BANK_SIZE, np.arange(left, left + width) % _BANK_SIZE
    return field[rows[:, None], columns]


def colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """A linear RGB colour: any hue, mostly little saturation, brightness uniform to the eye."""
    hue = rng.uniform(0, 6)
    pure = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    saturation, value = rng.beta(1.2, 2.2), rng.uniform(0.08, 0.95)
    return ((value * (1 - saturation * (1 - pure))) ** GAMMA).astype(np.float32)


def near_colour(rng: np.random.Generator, like: NDArray[np.float32], spread: float) -> NDArray[np.float32]:
    """A colour that differs from another by a factor per channel."""
    common, own = rng.normal(0, spread), rng.normal(0, spread / 3, 3)
    return np.clip(like * np.exp(common + own), 0.002, 1).astype(np.float32)


def texture(
    rng: np.random.Generator, height: int, width: int, base: NDArray[np.float32], patterns: float = 0.35
) -> NDArray[np.float32]:
    """(height, width, 3) linear RGB of a surface: a colour, often a pattern, uneven, lit from one side."""
    surface: NDArray[np.float32] = np.broadcast_to(base, (height, width, 3))
    if rng.random() < patterns:
        weight = _pattern(rng, height, width)[..., None]
        surface = surface * (1 - weight) + near_colour(rng, base, rng.uniform(0.3, 1.2)) * weight
    strength = rng.choice([0.04, 0.12, 0.3, 0.6], p=[0.3, 0.35, 0.25, 0.1])
    light = strength * noise(rng, height, width)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.8) / max(height, width)
    light = light + slope * (np.cos(angle) * _centred(width) + np.sin(angle) * _centred(height)[:, None])
    return surface * np.exp(light, dtype=np.float32)[..., None]


def _pattern(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """(height, width) in [0, 1]: stripes, checks or dots, sharp or soft, of a random pitch and direction."""
    pitch, angle = rng.uniform(4, 24), rng.uniform(0, np.pi)
    cos, sin = np.cos(angle) * 2 * np.pi / pitch, np.sin(angle) * 2 * np.pi / pitch
    x, y = _centred(width), _centred(height)[:, None]
    along = np.sin(cos * x + sin * y + rng.uniform(0, 6))
    kind = rng.integers(3)
    if kind > 0:
        across = np.sin(-sin * x + cos * y + rng.uniform(0, 6))
        along = along * across if kind == 1 else along + across - 0.7
    return np.clip(0.5 + along * rng.uniform(0.5, 4), 0, 1).astype(np.float32)


def _centred(length: int) -> NDArray[np.float32]:
    return np.arange(length, dtype=np.float32) - np.float32(length / 2)


def cover(
    rng: np.random.Generator, radius: float, centre: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """(height, width) uint8 cover, 0 to 255, of a random outline: blob, polygon, ellipse, box or stroke."""
    canvas = np.zeros(shape, np.uint8)
    kind = rng.choice(5, p=[0.35, 0.2, 0.15, 0.2, 0.1])
    turn = rng.uniform(0, 2 * np.pi)
    if kind == 4:  # a bent stroke
        along = np.linspace(-1, 1, 12)
        points = np.stack([along, rng.normal(0, 0.4) * (along**2 - 0.5) + rng.normal(0, 0.2) * along**3], axis=1)
        thickness = max(2, round(radius * rng.uniform(0.12, 0.45)))
        cv2.polylines(canvas, [_place(points, 1.3 * radius, turn, centre)], False, 255, thickness, cv2.LINE_AA, 4)
        return canvas
    if kind == 3:
        aspect = rng.uniform(0.35, 1.0)
        points = np.array([(-1, -aspect), (1, -aspect), (1, aspect), (-1, aspect)]) * 0.9
        if rng.random() < 0.5:
            turn = rng.normal(0, 0.08)
    else:
        corners = int(rng.integers(3, 8)) if kind == 1 else 40
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        reach = np.ones(corners)
        if kind == 0:
            waves = [rng.normal(0, 0.3 / k) * np.cos(k * angles + rng.uniform(0, 6)) for k in range(2, 7)]
            reach = np.clip(1 + np.sum(waves, axis=0), 0.25, 1.8)
        elif kind == 1:
            angles = angles + rng.normal(0, 0.5 / corners, corners)
            reach = rng.uniform(0.6, 1.2, corners)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
        points[:, 1] *= rng.uniform(0.4, 1.0)
    cv2.fillPoly(canvas, [_place(points, radius, turn, centre)], 255, cv2.LINE_AA, 4)
    return canvas


def limbs(
    rng: np.random.Generator, radius: float, centre: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """(height, width) uint8 cover of one to four thin strokes that leave a centre."""
    canvas = np.zeros(shape, np.uint8)
    for _ in range(rng.integers(1, 5)):
        along = np.linspace(0, 1, 8)
        points = np.stack([along * rng.uniform(1.1, 1.7), rng.normal(0, 0.3) * along**2], axis=1)
        thickness = int(np.clip(radius * rng.uniform(0.03, 0.12), 2, 8))
        line = _place(points, radius, rng.uniform(0, 2 * np.pi), centre)
        cv2.polylines(canvas, [line], False, 255, thickness, cv2.LINE_AA, 4)
    return canvas


def body(rng: np.random.Generator, outline: NDArray[np.uint8], radius: float, sun: float) -> NDArray[np.float32]:
    """(height, width, 1) brightness of a rounded body with an outline under a light from an angle, radians.

    Its height grows from the border inward as that of a bulge; brightness is Lambert's, with a highlight at times.
    """
    depth = cv2.distanceTransform((outline > 127).astype(np.uint8), cv2.DIST_L2, 5)
    bulge = radius * rng.uniform(0.3, 1.0)
    inward = np.clip(depth / np.float32(bulge), 0, 1)
    height = cv2.GaussianBlur(np.float32(bulge) * np.sqrt(inward * (2 - inward)), (0, 0), max(1.0, 0.08 * radius))
    slope_x, slope_y = (
        cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / 8),
    )
    rise = rng.uniform(0.5, 1.2)  # of the light over the image
    facing = np.sin(rise) - np.cos(rise) * (np.cos(sun) * slope_x + np.sin(sun) * slope_y)
    facing = np.clip(facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)
    ambient = rng.uniform(0.15, 0.6)
    shade = ambient + (1 - ambient) * facing / np.sin(rise)
    if rng.random() < 0.3:
        shade = shade + rng.uniform(0.5, 3) * facing ** rng.uniform(20, 80)
    return shade[..., None].astype(np.float32)


def _place(points: NDArray[np.float64], radius: float, turn: float, centre: NDArray[np.float64]) -> NDArray[np.int32]:
    """Points scaled, turned and moved, in OpenCV's fixed point with four fractional bits."""
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.round((points @ rotation.T * radius + centre) * 16).astype(np.int32)

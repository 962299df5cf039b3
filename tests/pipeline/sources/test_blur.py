from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samdeblur.pipeline.sources.blur import BlurModel

STILL = BlurModel(camera_path=(0, 0), objects=(0, 0), rotation=0, shot_noise=0, read_noise=0)
SHIFTED = replace(STILL, camera_path=(9, 9))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)


def light(codes):
    """Linear light 0..1 of 8-bit codes."""
    return (codes / 255.0) ** 2.2


def test_the_same_seed_gives_the_same_pair_and_another_seed_another_blur(noise):
    (blurred, sharp), again, other = (BlurModel().render(noise, seed) for seed in (1, 1, 2))
    assert np.array_equal(blurred, again[0])
    assert np.array_equal(sharp, again[1])
    assert not np.array_equal(blurred, other[0])
    assert np.array_equal(sharp, other[1])
    assert blurred.shape == sharp.shape == noise.shape
    assert blurred.dtype == sharp.dtype == np.uint8


def test_without_motion_and_noise_nothing_is_blurred(noise):
    blurred, sharp = STILL.render(noise, 3)
    assert np.array_equal(blurred, noise)
    assert np.array_equal(sharp, noise)


@pytest.mark.parametrize(
    "change",
    [{"camera_path": (6, 6)}, {"rotation": 40}, {"objects": (1, 1)}, {"shot_noise": 1e-3}, {"read_noise": 1e-2}],
    ids=lambda change: next(iter(change)),
)
def test_every_cause_alone_changes_the_blurred_image_and_not_the_sharp_one(noise, change):
    blurred, sharp = replace(STILL, **change).render(noise, 3)
    assert not np.array_equal(blurred, noise)
    assert np.array_equal(sharp, noise)


def test_a_moving_camera_spreads_the_light_of_a_point_and_loses_none():
    photo = np.zeros((61, 61, 3), np.uint8)
    photo[30, 30] = 255
    blurred, _ = SHIFTED.render(photo, 5)
    assert light(blurred).sum(axis=(0, 1)) == pytest.approx([1, 1, 1], rel=0.03)  # codes are whole numbers
    assert light(blurred).max() < 0.5
    assert (blurred[..., 0] > 0).sum() > 8


def test_the_path_passes_through_where_the_sharp_image_stands():
    photo = np.zeros((61, 61, 3), np.uint8)
    photo[30, 30] = 255
    for seed in range(8):
        assert SHIFTED.render(photo, seed)[0][30, 30, 0] > 0


def test_a_path_is_as_long_as_asked():
    photo = np.zeros((81, 81, 3), np.uint8)
    photo[40, 40] = 255
    for seed in range(8):
        rows, columns = np.nonzero(replace(STILL, camera_path=(20, 20)).render(photo, seed)[0][..., 0])
        assert 8 < np.hypot(np.ptp(rows), np.ptp(columns)) <= 20 + 3  # a curve of 20, and interpolation around it


def test_light_and_not_codes_are_averaged():
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, 30:] = 255
    for seed in range(4):
        one, other = (SHIFTED.render(image, seed)[0] for image in (photo, 255 - photo))
        assert ((one > 40) & (one < 215)).any()  # the edge is blurred
        assert light(one) + light(other) == pytest.approx(np.ones(photo.shape), abs=0.02)


def test_rotation_moves_the_corners_and_not_the_middle(noise):
    blurred, _ = replace(STILL, rotation=20).render(np.repeat(np.repeat(noise, 2, 0), 2, 1), 3)
    change = np.abs(blurred.astype(int) - np.repeat(np.repeat(noise, 2, 0), 2, 1)).mean(axis=2)
    assert change[50:70, 60:80].mean() < change[:20, :20].mean() / 2


def test_a_moving_object_blurs_a_region_and_leaves_the_rest_alone(noise):
    blurred, _ = replace(STILL, objects=(1, 1), object_path=(8, 8)).render(noise, 3)
    changed = (blurred != noise).any(axis=2)
    assert 0.02 < changed.mean() < 0.6


def test_gain_brightens_both_images_and_clips_highlights():
    photo = np.full((20, 20, 3), 100, np.uint8)
    photo[:, 10:] = 240
    blurred, sharp = replace(STILL, gain=(2, 2)).render(photo, 0)
    assert np.array_equal(blurred, sharp)
    assert light(sharp[0, 0]) == pytest.approx(2 * light(np.full(3, 100)), rel=0.02)
    assert (sharp[:, 10:] == 255).all()


def test_noise_has_the_variance_asked_for():
    photo = np.full((120, 120, 3), 160, np.uint8)
    level = light(160)
    blurred, _ = replace(STILL, shot_noise=4e-4, read_noise=0.01).render(photo, 0)
    assert light(blurred).mean() == pytest.approx(level, rel=0.01)
    assert light(blurred).std() == pytest.approx(np.sqrt(4e-4 * level + 0.01**2), rel=0.05)


def test_jpeg_is_that_of_the_quality_asked_for(noise):
    errors = {}
    for quality in (95, 30):
        blurred, sharp = replace(STILL, jpeg_quality=quality).render(noise, 0)
        assert np.array_equal(sharp, noise)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        theirs = np.array(Image.open(buffer), float)
        errors[quality] = np.abs(blurred - theirs).mean() / np.abs(noise - theirs).mean()
    assert max(errors.values()) < 0.2  # as PIL writes it, and R and B not swapped

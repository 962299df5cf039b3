from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from samdeblur.pipeline import PrepSettings, SourceError, StoreOptions, open_source, prepare, status
from samdeblur.pipeline.sources.camera import Sensor
from samdeblur.pipeline.sources.textures import body
from samdeblur.pipeline.sources.worlds import FAMILIES, MODEL, Look, WorldModel, WorldSource
from samdeblur.storage import open_store
from samdeblur.storage.sharing.verify import verify_store

SMALL = WorldModel(size=(96, 128))
STILL = replace(
    SMALL,
    camera_path=(0, 0),
    camera_turn=0,
    moving=0,
    lamps=0,
    sensor=replace(SMALL.sensor, shot_noise=0, read_noise=0),
)


@pytest.fixture(scope="module")
def scenes():
    return [SMALL.render((9, number)) for number in range(6)]


def test_a_seed_is_a_scene(scenes):
    again = SMALL.render((9, 2))
    assert np.array_equal(again.blurred, scenes[2].blurred)
    assert np.array_equal(again.sharp, scenes[2].sharp)
    assert again.masks == scenes[2].masks
    assert not np.array_equal(scenes[0].sharp, scenes[1].sharp)


def test_images_are_rgb_of_the_size_asked_for(scenes):
    for scene in scenes:
        for image in (scene.blurred, scene.sharp):
            assert (image.shape, image.dtype) == ((96, 128, 3), np.uint8)
        assert scene.masks.shape == (96, 128)


def test_masks_are_parts_objects_and_groups_one_inside_another_or_apart(scenes):
    nested = 0
    for scene in scenes:
        masks = scene.masks.to_masks()
        assert len(masks) > 5
        for index, large in enumerate(masks):
            for small in masks[index + 1 :]:
                shared = (large & small).sum()
                assert shared in (0, small.sum())
                nested += shared > 0
    assert nested > 10


def test_no_mask_is_too_small_or_nearly_another(scenes):
    for scene in scenes:
        areas = np.sort(scene.masks.mask_areas())
        assert areas[0] >= SMALL.min_area * 96 * 128
        masks = scene.masks.to_masks().reshape(scene.masks.n_masks, -1).astype(np.int64)
        shared = masks @ masks.T
        ious = shared / np.maximum(np.add.outer(np.diag(shared), np.diag(shared)) - shared, 1)
        np.fill_diagonal(ious, 0)
        assert ious.max() < 0.95


def test_without_motion_the_blurred_image_is_the_sharp_one():
    for seed in range(3):
        scene = STILL.render(seed)
        difference = np.abs(scene.blurred.astype(int) - scene.sharp)
        assert difference.max() <= 1


def test_masks_follow_the_colours():
    """Plain surfaces: the borders of the masks are where the image changes."""
    scene = STILL.render(4)
    grey = scene.sharp.astype(float).mean(axis=2)
    step = np.abs(np.diff(grey, axis=1))
    border = np.diff(scene.masks.atoms.astype(int), axis=1) != 0
    assert step[border].mean() > 4 * step[~border].mean()


def test_longer_paths_blur_more():
    def error(length: float) -> float:
        model = replace(STILL, camera_path=(length, length))
        return float(
            np.mean([np.square(s.blurred.astype(float) - s.sharp).mean() for s in map(model.render, range(4))])
        )

    assert error(2) < error(8) < error(20)


def test_objects_move_on_their_own():
    """With a still camera and few moving things, part of the image stays sharp and part does not."""
    scene = replace(STILL, moving=0.3, object_path=(14, 14)).render(3)
    changed = np.abs(scene.blurred.astype(int) - scene.sharp).max(axis=2) > 12
    assert 0.01 < changed.mean() < 0.7


def test_sensor_noise_and_jpeg_show():
    noisy = replace(STILL, sensor=replace(STILL.sensor, read_noise=0.05)).render(1)
    jpeg = replace(STILL, jpeg_quality=(20, 20)).render(1)
    clean = STILL.render(1)
    for other in (noisy, jpeg):
        assert np.array_equal(other.sharp, clean.sharp)
        assert np.abs(other.blurred.astype(int) - clean.blurred).mean() > 0.5


@pytest.mark.parametrize(
    ("location", "split", "words"),
    [
        ("worlds:", "train", "worlds:COUNT"),
        ("worlds:0", "train", "worlds:COUNT"),
        ("worlds:5:7", "train", "worlds:COUNT"),
        ("worlds:many", "train", "worlds:COUNT"),
        ("worlds", "testing", "no split 'testing'"),
    ],
)
def test_what_worlds_do_not_offer_is_refused(location, split, words):
    with pytest.raises(SourceError, match=words):
        open_source(location, split)


def test_splits_and_numbers_are_other_scenes():
    source = WorldSource.of("worlds:3:64", "train")
    assert source.keys == ["0000000", "0000001", "0000002"]
    assert [source.shape(key) for key in source.keys] == [(64, 64)] * 3
    test = WorldSource.of("worlds:3:64", "test")
    images = [s.read(key).sharp.tobytes() for s in (source, test) for key in s.keys]
    assert len(set(images)) == 6
    assert open_source("worlds", "train").shape("0000000") == MODEL.size


def test_worlds_are_prepared_like_any_source(tmp_path):
    source = open_source("worlds:3:64", "val")
    prepare(source, tmp_path / "w.zarr", PrepSettings(true_masks=True, device="cpu"), StoreOptions(block_size=2), 1)
    assert list(verify_store(tmp_path / "w.zarr")) == []
    store = open_store(tmp_path / "w.zarr")
    for key in source.keys:
        pair = source.read(key)
        assert store.atoms(key) == pair.masks
        assert np.array_equal(store.image("blurred", key), pair.blurred)
        assert np.array_equal(store.image("sharp", key), pair.sharp)
        assert np.array_equal(store.records(key)["area"], pair.masks.mask_areas())


def test_true_masks_of_a_source_that_knows_none_quarantine(tmp_path):
    source = open_source("sample", "test").subset(["camera-107"])
    prepare(source, tmp_path / "s.zarr", PrepSettings(true_masks=True, device="cpu"), workers=1)
    assert "no true masks" in status(tmp_path / "s.zarr").quarantined["camera-107"]


TINY = {name: replace(model, size=(64, 80)) for name, model in FAMILIES.items()}


def test_families_differ_from_worlds_in_what_they_say():
    compared = ("", "long", "local", "tone", "bright", "jpeg")
    scenes = {name: [TINY[name].render((2, seed)) for seed in range(6)] for name in compared}

    def error(name):
        return np.mean([np.square(s.blurred.astype(float) - s.sharp).mean() for s in scenes[name]])

    assert error("long") > 1.3 * error("")
    assert error("local") < 0.5 * error("")
    darker, lighter = (np.mean([s.sharp.mean() for s in scenes[name]]) for name in ("tone", "bright"))
    assert darker < np.mean([s.sharp.mean() for s in scenes[""]]) < lighter
    for one, other in zip(scenes["jpeg"], scenes["long"], strict=True):  # the same scenes, seen otherwise
        assert one.masks.n_masks > 0
        assert not np.array_equal(one.blurred, other.blurred)


def test_of_a_local_world_most_is_sharp_and_something_moves():
    model = replace(TINY["local"], sensor=Sensor(0, 0), camera_path=(0.0, 0.0))
    shares = []
    for seed in range(8):
        scene = model.render((2, seed))
        shares.append((np.abs(scene.blurred.astype(int) - scene.sharp).max(axis=2) > 8).mean())
    assert np.median(shares) < 0.5
    assert max(shares) > 0.03


def test_a_family_is_a_source_with_a_name_of_its_own():
    source = WorldSource.of("worlds-long:3:64", "test")
    assert (source.dataset, source.keys[-1], source.shape("0000000")) == ("worlds-long", "0000002", (64, 64))
    assert isinstance(open_source("worlds-local:2:48", "train"), WorldSource)


def test_a_body_is_lit_from_where_the_light_is():
    outline = np.zeros((80, 80), np.uint8)
    cv2.circle(outline, (40, 40), 30, 255, -1)
    for sun in (0.0, 2.0, 4.0):
        shade = body(np.random.default_rng(3), outline, 30.0, sun)[..., 0]
        towards, away = (shade[round(40 + s * np.sin(sun)), round(40 + s * np.cos(sun))] for s in (24, -24))
        assert towards > 1.2 * away > 0


def test_what_is_far_may_be_out_of_focus_and_masks_stay():
    sharp, soft = (replace(STILL, look=Look(defocus=sigma)).render((6, 1)) for sigma in (0.0, 30.0))
    step = [np.abs(np.diff(scene.sharp.astype(float), axis=1)).mean() for scene in (sharp, soft)]
    assert step[1] < 0.9 * step[0]
    assert soft.masks == sharp.masks


def test_limbs_make_outlines_longer():
    def border(look):
        scenes = [replace(STILL, things=(1, 3), look=look).render((7, seed)) for seed in range(6)]
        return sum((np.diff(scene.masks.atoms.astype(int), axis=1) != 0).sum() for scene in scenes)

    assert border(Look(limbs=1.0)) > border(Look())


@pytest.mark.parametrize(
    ("location", "split", "words"),
    [
        ("worlds-lang", "test", "no such family of worlds, choose from worlds-long"),
        ("worlds-long", "test-ood", "a family has no split test-ood"),
        ("worlds-:3", "test", "write worlds, worlds:COUNT"),
    ],
)
def test_families_that_are_not_there_are_refused(location, split, words):
    with pytest.raises(SourceError, match=words):
        open_source(location, split)

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from samdeblur.pipeline import SourceError, open_source
from samdeblur.pipeline.sources.sample import FAMILIES, SPLITS

FILES = {"hubble_deep_field": ".jpg", "retina": ".jpg", "rocket": ".jpg"}


class Pairs(dict):
    """(split, key) -> pair, read when it is asked for, with no way to the network."""

    def __missing__(self, where):
        split, key = where
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", None)
            self[where] = open_source("sample", split).read(key)
        return self[where]


@pytest.fixture(scope="module")
def pairs():
    return Pairs()


def photographs(split):
    return {crop.photo for crop in SPLITS[split][0]}


def test_splits_for_training_and_testing_share_no_photograph():
    assert not photographs("train") & photographs("test")
    assert photographs("test") == photographs("test-ood")
    assert photographs("all") == photographs("train") | photographs("test")
    assert len(photographs("train") | photographs("test")) >= 6


@pytest.mark.parametrize("split", SPLITS)
def test_keys_are_sorted_and_unique(split):
    source = open_source("sample", split)
    assert len(source.keys) == len(SPLITS[split][0])
    assert source.keys == sorted(set(source.keys))


def test_sizes_vary_and_no_two_blurs_have_a_seed():
    for split in SPLITS:
        source = open_source("sample", split)
        assert len({source.shape(key) for key in source.keys}) > 3
    seeds = [crop.seed for crops, _ in SPLITS.values() for crop in crops]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("split", ["train", "test"])
def test_sharp_images_are_windows_of_the_photographs_of_the_wheel(pairs, split):
    folder = Path(skimage.__file__).parent / "data"
    source = open_source("sample", split)
    of_each_photograph = {crop.photo: (key, crop) for key, crop in source.crops.items()}
    for name, (key, crop) in of_each_photograph.items():
        photo = np.array(Image.open(folder / f"{name}{FILES.get(name, '.png')}").convert("RGB"))
        window = photo[crop.top :, crop.left :][: crop.height, : crop.width]
        assert np.array_equal(pairs[split, key].sharp, window), key
        assert pairs[split, key].blurred.shape == (*source.shape(key), 3), key


def test_a_second_reading_gives_the_same_bytes(pairs):
    for split, key in [("test", "coffee-105"), ("test-ood", "coffee-205")]:
        again, first = open_source("sample", split).read(key), pairs[split, key]
        assert again.digest == first.digest
        assert np.array_equal(again.blurred, first.blurred)
        assert np.array_equal(again.sharp, first.sharp)


def sharpness(image):
    """Mean square step between neighbouring pixels."""
    return np.mean(np.diff(image.astype(float), axis=0) ** 2) + np.mean(np.diff(image.astype(float), axis=1) ** 2)


def test_images_are_blurred_and_those_of_test_ood_more_than_those_of_test(pairs):
    kept = {
        split: [sharpness(pair.blurred) / sharpness(pair.sharp) for pair in (pairs[split, key] for key in keys)]
        for split, keys in ((split, open_source("sample", split).keys) for split in ("test", "test-ood"))
    }
    assert max(kept["test"] + kept["test-ood"]) < 0.9
    assert np.mean(kept["test-ood"]) < 0.75 * np.mean(kept["test"])


def test_training_images_are_blurred_as_test_images_are():
    assert SPLITS["train"][1] == SPLITS["test"][1] != SPLITS["test-ood"][1]


def test_families_are_the_same_crops_under_another_blur(pairs):
    key = "coffee-105"
    plain = pairs["test", key]
    families = {name: open_source(name, "test") for name in FAMILIES if name != "sample"}
    assert all((source.dataset, source.keys) == (name, [*map(str, source.crops)]) for name, source in families.items())
    seen = {name: source.read(key) for name, source in families.items()}
    assert len({pair.digest for pair in seen.values()} | {plain.digest}) == len(FAMILIES)
    same_sharp = {name for name, pair in seen.items() if np.array_equal(pair.sharp, plain.sharp)}
    assert same_sharp == set(seen) - {"sample-noisy", "sample-bright", "sample-tone", "sample-wide"}
    kept = {name: sharpness(pair.blurred) / sharpness(pair.sharp) for name, pair in seen.items()}
    assert kept["sample-long"] < 0.9 * sharpness(plain.blurred) / sharpness(plain.sharp) < 0.5 * kept["sample-local"]
    assert seen["sample-tone"].sharp.mean() < plain.sharp.mean() < seen["sample-bright"].sharp.mean()


def test_a_wide_family_shows_every_training_crop_under_many_blurs():
    wide, plain = open_source("sample-wide", "train"), open_source("sample", "train")
    assert len(wide.keys) == len(set(wide.keys)) == 24 * len(plain.keys)
    first, other = (wide.read(key) for key in ("brick-014", "brick-1014"))
    assert first.blurred.shape == other.blurred.shape
    assert not np.array_equal(first.blurred, other.blurred)
    assert open_source("sample-wide", "test").keys == open_source("sample", "test").keys


@pytest.mark.parametrize("location", ["sample-lang", "sample-", "sample-long:3", "sample:3"])
def test_a_family_that_is_not_there_is_refused_with_the_known_ones(location):
    with pytest.raises(SourceError, match=f"{location}: no such sample, choose from sample, sample-long"):
        open_source(location, "test")


def test_a_folder_with_the_name_of_a_family_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample-long").mkdir()
    with pytest.raises(SourceError, match="an empty folder"):
        open_source("sample-long", "test")


def test_a_family_has_no_split_test_ood():
    with pytest.raises(SourceError, match="sample-long: a family has no split test-ood"):
        open_source("sample-long", "test-ood")


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(SourceError, match="no split 'val', choose from train, test, test-ood"):
        open_source("sample", "val")

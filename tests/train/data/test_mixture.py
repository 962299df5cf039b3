"""Several stores with shares of the samples."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from samdeblur.cli.train import with_share
from samdeblur.models import load_network
from samdeblur.train import ConfigError, train
from samdeblur.train.data.crops import CropDataset, Cutting
from samdeblur.train.data.mixture import CYCLE, Mixture, counts_of
from samdeblur.train.start import Mixed

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture
def stores(make_store, pair, tmp_path):
    """Two stores, with masks of other recipes."""
    one = make_store(tmp_path / "one.zarr", {key: pair(seed, 30, 40) for seed, key in enumerate("abc")})
    two = make_store(tmp_path / "two.zarr", {key: pair(seed, 40, 30) for seed, key in enumerate("xy", 7)}, recipe="b")
    return one, two


@pytest.fixture
def mixture(stores):
    parts = [CropDataset(used, used.keys, Cutting(24), seed, True) for seed, used in enumerate(stores)]
    return Mixture(parts, [0.7, 0.3], seed=5)


def test_each_store_has_its_share_of_every_cycle_exactly():
    assert counts_of([0.7, 0.3]) == (700, 300)
    assert counts_of([7, 3]) == (700, 300)
    assert counts_of([1, 1, 1]) == (334, 333, 333)
    assert sum(counts_of([0.123, 0.456, 9])) == CYCLE
    with pytest.raises(ConfigError, match=r"share 1e-05 of 1\.00001: less than one of 1000 samples"):
        counts_of([1, 1e-5])


def test_the_samples_of_each_store_are_counted_through_without_a_gap(mixture):
    places = [mixture.place(sample) for sample in range(2 * CYCLE + 37)]
    assert Counter(part for part, _ in places[:CYCLE]) == {0: 700, 1: 300}
    for part in (0, 1):
        numbers = [number for found, number in places if found == part]
        assert numbers == list(range(len(numbers)))
    assert [mixture.place(n) for n in (1999, 3, 1500)] == [places[n] for n in (1999, 3, 1500)], "in any order"


def test_images_and_masks_of_a_sample_are_those_of_one_crop_of_its_store(mixture):
    for sample in (0, 1, 2, 999, 1000, 1234):
        part, number = mixture.place(sample)
        found, expected = mixture[sample], mixture.parts[part][number]
        assert np.array_equal(found.blurred, expected.blurred)
        assert np.array_equal(found.sharp, expected.sharp)
        assert found.atoms == expected.atoms or np.array_equal(found.atoms.atoms, expected.atoms.atoms)


def losses(folder):
    return [row["loss"] for row in torch.load(folder / "state.pt", weights_only=True)["history"] if "loss" in row]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_several_stores_goes_on_bit_for_bit(workers, stores, small, tmp_path):
    one, two = stores
    config = replace(small, method="map-dropout", save_every=3, loader_workers=workers)

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 5:
            raise Killed

    mixed = {"mixed": [Mixed(two, 0.3)], "share": 0.7}
    train(config, one, tmp_path / "whole", **mixed)
    with pytest.raises(Killed):
        train(config, one, tmp_path / "cut", progress=kill, **mixed)
    train(config, one, tmp_path / "cut", **mixed)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    train(config, one, tmp_path / "alone")
    assert losses(tmp_path / "alone") != losses(tmp_path / "whole")


def test_recipes_of_all_stores_are_kept_with_the_weights(stores, small, tmp_path):
    one, two = stores
    train(replace(small, steps=2), one, tmp_path / "run", mixed=[Mixed(two, 0.3)], share=0.7)
    said = load_network(tmp_path / "run/last.safetensors").provenance["masks"]
    assert [used["share"] for used in said] == [0.7, 0.3]
    assert [used["recipe"] for used in said] == [store.header.fingerprint for store in stores]
    assert [used["made_by"] for used in said] == [json.loads(json.dumps(dict(s.header.recipe))) for s in stores]
    facts = json.loads((tmp_path / "run/run.json").read_text())["train"]
    assert [used["images"] for used in (facts, *facts["mixed_with"])] == [2, 2]  # one of three is held out


@pytest.mark.parametrize("changed", ["share", "other store", "none", "order"])
def test_a_run_is_not_gone_on_with_on_another_mixture(changed, stores, small, tmp_path, make_store, pair):
    one, two = stores
    config = replace(small, steps=2)
    val = make_store(tmp_path / "val.zarr", {"v": pair(3, 30, 40)})
    train(config, one, tmp_path / "run", val, mixed=[Mixed(two, 0.3)], share=0.7)
    other = make_store(tmp_path / "three.zarr", {"x": pair(1, 30, 40)})
    first, rest = {
        "share": (one, [Mixed(two, 0.4)]), "other store": (one, [Mixed(other, 0.3)]), "none": (one, []),
        "order": (two, [Mixed(one, 0.3)]),
    }[changed]  # fmt: skip
    with pytest.raises(ConfigError, match=r"train: (other images|another number of stores)"):
        train(config, first, tmp_path / "run", val, mixed=rest, share=0.7 if rest else 1.0)


def test_shares_of_the_command_line(tmp_path):
    assert with_share("a.zarr=0.7") == ("a.zarr", 0.7)
    assert with_share("a.zarr") == ("a.zarr", 1.0)
    assert with_share("https://host/s.zarr?sig=12") == ("https://host/s.zarr?sig=12", 1.0)
    assert with_share("by=hand.zarr") == ("by=hand.zarr", 1.0)
    (tmp_path / "s=1").mkdir()
    assert with_share(str(tmp_path / "s=1")) == (str(tmp_path / "s=1"), 1.0)
    assert with_share(f"{tmp_path}/s=1=2") == (f"{tmp_path}/s=1", 2.0)
    for bad in ("a.zarr=0", "a.zarr=-1", "a.zarr=nan", "a.zarr=inf"):
        with pytest.raises(Exception, match="a share is a number above zero"):
            with_share(bad)


def test_the_command_takes_several_stores(stores, samdeblur, tmp_path):
    one, two = stores
    small = ("--config", "unet", "--set", "network_options={width: 4, levels: 1, blocks: 1}", "--set", "crop_size=24")
    short = ("--steps", 2, "--batch-size", 2, "--set", "val_every=2", "--device", "cpu", "--out", tmp_path / "run")
    done = samdeblur("train", f"{one.path}=0.7", f"{two.path}=0.3", *small, *short)
    assert done.code == 0, done.err
    assert re.match(r"none on cpu: 4 images \(\d more for validation\), 4 crops per epoch\n", done.out)
    done = samdeblur("train", f"{one.path}=0.7", f"{two.path}=0.5", *small, *short)
    assert (done.code, "train: other images, masks or weights" in done.error) == (2, True)

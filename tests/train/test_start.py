"""What a run starts from, and what it writes down about it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
import yaml

from samdeblur.models import CheckpointError, NAFNet, load_network
from samdeblur.storage.writing.lease import StoreBusy
from samdeblur.train import ConfigError, build_network, score_images, train
from samdeblur.train.start import choose_images, code_state

pytestmark = pytest.mark.usefixtures("quick_curves")


# Fine-tuning


@pytest.fixture(scope="module")
def source(store, small, tmp_path_factory):
    """source(method) -> folder of a finished run of four steps; each made once."""
    made = {}

    def of(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("source") / method
            train(replace(small, method=method, steps=4, width=6, learning_rate=1e-2), store, folder)
            made[method] = folder
        return made[method]

    return of


def same_weights(one, other):
    one, other = (load_network(path).state_dict() for path in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["cat", "map", "map-dropout"])
def test_a_network_without_a_prior_gets_one_and_starts_from_what_it_can(store, small, source, tmp_path, method):
    history = train(replace(small, method=method, weights=str(source("none"))), store, tmp_path)
    images = json.loads((tmp_path / "run.json").read_text())["validation"]["images"]
    scores = [score.metrics["psnr"] for score, _ in score_images(load_network(source("none")), store, images)]
    assert history[0]["val_psnr"] == np.mean(scores)
    last = load_network(tmp_path / "last.safetensors")
    assert last.prior is not None
    assert all(weight.any() for weight in last.prior_conv.parameters())  # which were zeros


@pytest.mark.parametrize("method", ["none", "cat", "map", "map-dropout"])
def test_a_network_goes_on_with_its_own_prior(store, small, source, tmp_path, method):
    train(replace(small, method=method, weights=str(source(method)), steps=1), store, tmp_path)
    assert same_weights(tmp_path / "initial.safetensors", source(method))


def test_map_goes_on_with_mask_dropout(store, small, source, tmp_path):
    config = replace(small, method="map-dropout", mask_dropout=0.25, weights=str(source("map")), steps=1)
    train(config, store, tmp_path)
    assert same_weights(tmp_path / "initial.safetensors", source("map"))
    assert build_network(config).prior.dropout == 0.25
    assert load_network(tmp_path / "last.safetensors").prior.dropout == 0.25


@pytest.mark.parametrize(
    ("begin", "go_on"),
    [
        ("cat", {"method": "map"}),
        ("map", {"method": "cat"}),
        ("map", {"method": "none"}),
        ("map", {"method": "map", "semantics": "released"}),
        ("map", {"method": "map", "prior_channels": 3}),
        ("map", {"method": "map", "aggregate": "mean"}),
        ("map", {"method": "map", "statistics": "mean+std"}),
    ],
    ids=str,
)
def test_another_prior_is_refused_in_one_line(store, small, source, tmp_path, begin, go_on):
    config = replace(small, weights=str(source(begin)), **go_on)
    with pytest.raises(ConfigError, match=rf"weights: .* has another prior than method {config.method}") as caught:
        train(config, store, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(source(begin)) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_architecture_is_that_of_the_checkpoint(store, small, source, tmp_path):
    """And is written down, so that the settings of the run can be used again."""
    config = replace(small, weights=str(source("none")), steps=1)
    assert config.width == 4
    train(config, store, tmp_path)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (written["width"], written["enc_blk_nums"], written["weights"]) == (6, [1], str(source("none")))
    assert load_network(tmp_path / "last.safetensors").network.config["width"] == 6


def test_a_public_checkpoint_is_a_beginning(store, small, tmp_path):
    torch.manual_seed(5)
    public = NAFNet(4, [1, 1], 1, [1, 1])
    for parameter in public.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"params": public.state_dict()}, tmp_path / "NAFNet.pth")
    network = build_network(replace(small, method="map", semantics="released", weights=str(tmp_path / "NAFNet.pth")))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="no atoms given"):
        assert torch.equal(network(image), public(image))
    assert network.prior.config["multiple"] == 4


def test_the_network_that_comes_with_the_package_is_a_beginning(store, small, tmp_path):
    config = replace(small, weights="bundled", method="map-dropout", steps=1)
    history = train(config, store, tmp_path)
    images = json.loads((tmp_path / "run.json").read_text())["validation"]["images"]
    scores = [score.metrics["psnr"] for score, _ in score_images(load_network("bundled"), store, images)]
    assert history[0]["val_psnr"] == np.mean(scores)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["width"] == 16


def test_a_run_from_a_checkpoint_goes_on_as_if_it_had_not_been_stopped(small, source, assert_stop_changes_nothing):
    config = replace(small, weights=str(source("none")), method="map-dropout", freeze_backbone=3)
    assert_stop_changes_nothing(config)


def test_another_checkpoint_of_the_same_name_is_refused(store, small, source, tmp_path):
    path = tmp_path / "begin.safetensors"
    shutil.copy(source("none") / "best.safetensors", path)
    config = replace(small, weights=str(path), steps=1)
    train(config, store, tmp_path / "run")
    train(config, store, tmp_path / "run")
    shutil.copy(source("none") / "initial.safetensors", path)
    with pytest.raises(ConfigError, match=r"weights: other images, masks or weights.*use another --out"):
        train(config, store, tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"begin.safetensors: no such checkpoint"):
        train(config, store, tmp_path / "run")


def test_what_is_no_checkpoint_is_refused_before_a_run_is_made(store, small, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    for name, error in (("text.pth", CheckpointError), ("gone.pth", FileNotFoundError)):
        with pytest.raises(error, match=name):
            train(replace(small, weights=str(tmp_path / name)), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Images


@pytest.fixture(scope="module")
def nine(tmp_path_factory, make_store, pair):
    return make_store(tmp_path_factory.mktemp("nine") / "nine.zarr", {f"{n}": pair(n, 16, 16) for n in range(9)})


@pytest.mark.parametrize(
    ("most", "places"),
    [(0, range(9)), (1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (9, range(9)), (20, range(9))],
)
def test_at_most_so_many_images_are_validated_evenly_spaced(small, store, nine, most, places):
    keys, val = choose_images(replace(small, val_images=most), store, nine)
    assert list(val.keys) == [nine.keys[place] for place in places]
    assert list(keys) == store.keys


def test_held_out_images_that_are_not_validated_are_not_trained_on_either(small, nine):
    keys, everything = choose_images(replace(small, val_share=0.5), nine, None)
    fewer_keys, fewer = choose_images(replace(small, val_share=0.5, val_images=2), nine, None)
    assert fewer_keys == keys
    assert list(fewer.keys) == [everything.keys[0], everything.keys[-1]]


# Facts


def test_a_run_writes_down_its_stores_settings_and_versions(store, nine, small, tmp_path):
    train(replace(small, seed=11, steps=1, val_images=2), store, tmp_path, nine)
    facts = json.loads((tmp_path / "run.json").read_text())
    for name, used in (("train", store), ("validation", nine)):
        header = used.header
        assert (facts[name]["recipe"], facts[name]["made_by"]) == (header.fingerprint, header.recipe)
        assert facts[name]["seal"] == header.seal
        assert (facts[name]["dataset"], facts[name]["split"]) == (header.dataset, header.split)
    assert facts["train"]["images"] == 4
    assert facts["validation"]["images"] == ["0", "8"]
    versions = {name: metadata.version(name) for name in ("samdeblur", "torch", "numpy")}
    assert versions.items() <= facts["versions"].items()
    assert facts["weights"] is None
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 11


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that runs git in a new repository, of which no settings of the user are known."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def git(*arguments):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path / "code"), *who, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "code/train").mkdir(parents=True)
    (tmp_path / "code/train/loop.py").write_text("1")
    git("init", "-q")
    return git


def test_the_state_of_the_code_is_its_commit_and_whether_it_was_changed(repository, tmp_path):
    folder = tmp_path / "code/train"
    repository("add", ".")
    repository("commit", "-q", "-m", "one")
    commit = repository("rev-parse", "HEAD")
    assert (len(commit), code_state(folder)) == (40, commit)
    repository("tag", "-a", "v1", "-m", "v1")
    assert code_state(folder) == commit
    (folder / "loop.py").write_text("2")
    assert code_state(folder) == f"{commit}-dirty"


def test_code_outside_a_repository_or_that_one_does_not_track_has_no_state(repository, tmp_path, monkeypatch):
    """As when it is installed in an environment that lies in the repository of another project."""
    (tmp_path / "code/other.txt").write_text("1")
    repository("add", "other.txt")
    repository("commit", "-q", "-m", "one")
    assert code_state(tmp_path / "code/train") is None
    (tmp_path / "elsewhere").mkdir()
    assert code_state(tmp_path / "elsewhere") is None
    monkeypatch.setenv("PATH", "")
    assert code_state(tmp_path / "code/train") is None


def test_two_trainings_in_one_folder_are_refused_and_the_first_ends_as_ever(store, small, tmp_path):
    undisturbed = train(small, store, tmp_path / "alone")
    said = []

    def begin_another(row):
        with pytest.raises(StoreBusy, match="is writing to this run") as refused:
            train(replace(small, method="map"), store, tmp_path / "run")
        said.append(str(refused.value))

    history = train(small, store, tmp_path / "run", progress=begin_another)
    assert said
    assert [row["loss"] for row in history[1:]] == [row["loss"] for row in undisturbed[1:]]
    assert not (tmp_path / "run/.lease").exists()


def test_a_training_whose_folder_another_took_over_stops_and_writes_nothing_more(store, small, tmp_path):
    def suspended(row):
        if row["step"] == 3:  # for longer than its lease; another takes over meanwhile, and ends
            (tmp_path / ".lease/lease.json").unlink()
            train(replace(small, steps=10), store, tmp_path)
            raise_at.append({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})

    raise_at = []
    with pytest.raises(StoreBusy, match="another job has taken this run over"):
        train(small, store, tmp_path, progress=suspended)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == raise_at[0]

"""Networks by name in training: each preset from its first step to images restored."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samdeblur.models import CheckpointError, NAFNet, deblur, forward_in_tiles, load_network, local_pooling
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.models.networks import named
from samdeblur.train import ConfigError, TrainConfig, read_config, train
from samdeblur.train.start import build_network, resolved

pytestmark = [
    pytest.mark.usefixtures("quick_curves"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:no atoms given"),
]

# The presets, with networks small enough for a test: what remains of the preset is what is tried.
FOUR = {"num_blocks": [1] * 4, "num_refinement_blocks": 1, "heads": [1] * 4}
SMALL = {
    "unet": {"width": 4, "levels": 2, "blocks": 1},
    "uformer": {"img_size": 32, "embed_dim": 4, "depths": [1] * 9, "num_heads": [1] * 9, "win_size": 2},
    "swinir": {"img_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4},
    "fftformer": {"dim": 4, "num_blocks": [1] * 3, "num_refinement_blocks": 1},
    "restormer": {"dim": 8, **FOUR},
}
SHORT = {
    "steps": 10, "batch_size": 2, "crop_size": 32, "val_every": 5, "log_every": 1, "warmup_steps": 0, "device": "cpu",
    "learning_rate": 2e-3, "method": "map",
}  # fmt: skip


def preset(name: str) -> TrainConfig:
    if name != "unet":
        pytest.importorskip("spandrel", reason="spandrel is not installed (pip install samdeblur[networks])")
    if name == "restormer":
        pytest.importorskip("spandrel_extra_arches", reason="spandrel-extra-arches is not installed")
    values = read_config(name) | {"network_options": SMALL[name], **SHORT}
    if "progressive_steps" in values:
        values |= {"progressive_steps": [2, 2], "progressive_crops": [16, 24], "progressive_batches": [4, 2]}
    return TrainConfig.of(values)


@pytest.mark.parametrize("name", SMALL)
def test_presets_of_other_networks_train_load_evaluate_and_restore(name, store, tmp_path, samdeblur):
    config = preset(name)
    rows = train(config, store, tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    network = load_network(tmp_path / "run/last.safetensors")
    assert network.recognised.startswith("a network of samdeblur: ")
    assert (named.name_of(network.network), network.prior.config["name"]) == (config.network, "map")
    blurred = store.image("blurred", store.keys[0])
    assert deblur(network, blurred, store.atoms(store.keys[0])).shape == blurred.shape

    # tiles, local means, evaluation and restoration take it as they take NAFNet
    image = torch.rand(1, 3, 150, 100)
    multiple = max(network.network.multiple, 16)
    with torch.no_grad():
        assert forward_in_tiles(network, image, None, 4 * multiple, multiple).shape == image.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of networks that look at whole images otherwise
        assert local_pooling(network, 32)(torch.rand(1, 3, 40, 40)).shape == (1, 3, 40, 40)
    done = samdeblur("eval", "run", tmp_path / "run", store.path, "--out", tmp_path / "e", "--device", "cpu")
    assert done.code == 0, done.err
    cv2.imwrite(str(tmp_path / "p.png"), blurred[..., ::-1])
    done = samdeblur(
        "eval", "restore", tmp_path / "run", tmp_path / "p.png", "--out", tmp_path / "o", "--device", "cpu"
    )
    assert done.code == 0, done.err
    assert cv2.imread(str(tmp_path / "o/p.png")).shape == blurred.shape

    # a network trained without a prior gets one, and its output stays; it trains on from its file
    plain = replace(config, method="none", steps=5)
    train(plain, store, tmp_path / "plain")
    without = load_network(tmp_path / "plain/last.safetensors")
    fine = replace(config, weights=str(tmp_path / "plain/last.safetensors"))
    begun = build_network(fine).eval()
    with torch.no_grad():
        atoms = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no atoms
            assert torch.equal(begun(image, atoms), without(image))
    assert resolved(fine, begun).network == config.network


def test_a_run_of_another_network_that_was_interrupted_goes_on_to_the_same_weights(
    store, tmp_path, contents, assert_same_run
):
    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 6:
            raise Killed

    config = replace(preset("swinir"), ema=0.9, save_every=4, schedule="restarts", restart_steps=3)
    train(config, store, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, store, tmp_path / "cut", progress=kill)
    train(config, store, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", contents(tmp_path / "whole"))


@pytest.mark.parametrize("name", SMALL)
def test_public_weights_of_other_networks_are_recognised(name, tmp_path):
    config = preset(name)
    if name == "unet":
        pytest.skip("has no public weights")
    network = named.build_network(config.network, config.network_options)
    state = {f"module.{key}": value for key, value in network.network.state_dict().items()}
    torch.save({"params": state, "epoch": 3}, tmp_path / "public.pth")
    loaded = load_network(tmp_path / "public.pth")
    assert loaded.recognised.startswith(f"a public {config.network}")
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(loaded(image), network.eval()(image))
    (tmp_path / "again.safetensors").write_bytes(encode_network(loaded))
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "again.safetensors")(image), network(image))


# Networks of one's own


class Halved(nn.Module):
    """Takes sides that are multiples of six only."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, channels, 6, 6), nn.ConvTranspose2d(channels, 3, 6, 6)

    def forward(self, image):
        if image.shape[-1] % 6 or image.shape[-2] % 6:
            raise ValueError("sixes only")
        return image + self.up(self.down(image))


def test_a_factory_of_ones_own_trains_and_its_file_asks_before_it_is_run(store, tmp_path, monkeypatch, small):
    name = f"{__name__}:Halved"
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    config = replace(small, network=name, network_options={"channels": 5}, method="cat", steps=4, val_every=4)
    train(config, store, tmp_path)
    weights = tmp_path / "last.safetensors"
    loaded = load_network(weights)
    assert loaded.network.multiple == 12
    assert loaded(torch.rand(1, 3, 41, 50), None).shape == (1, 3, 41, 50) if loaded.prior is None else True
    monkeypatch.setattr(named, "_asked", set())  # as in another process
    with pytest.raises(
        CheckpointError, match=f"last.safetensors: asks for the network {name}, .*{named.ALLOWED}={name}$"
    ):
        load_network(weights)
    monkeypatch.setenv(named.ALLOWED, f"other:x,{name}")
    assert load_network(weights).recognised.startswith(f"a network of samdeblur: {name} (channels 5)")


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("nafnett", {}, "no network 'nafnett'; did you mean nafnet"),
        ("restormer", {}, "it is nafnet, unet, spandrel:CLASS or package.module:factory"),
        ("spandrel:Uformers", {}, "did you mean Uformer"),
        ("spandrel:Uformer", {"dim": 3}, "unexpected keyword argument 'dim'; its options are img_size"),
        ("spandrel:DRUNet", {}, "does not turn an image"),
        ("spandrel:SPAN", {"num_in_ch": 3, "num_out_ch": 3, "upscale": 4}, "restores no images"),
        ("unet", {"width": 0}, "width: 0 is not a whole number"),
        ("unet", {"deep": 3}, "its options are width, levels, blocks"),
        ("nowhere.at.all:make", {}, "no module 'nowhere'; install it, or put its folder on PYTHONPATH"),
        ("torch.nn:Conv3dd", {}, "no 'Conv3dd' in it; did you mean Conv3d"),
        ("os:getcwd", {}, "returns a str, not a torch module"),
        ("os:sep", {}, "is not a class or function"),
        ("torch.nn:Identity", {}, "no convolution"),
        ("torch.nn:Linear", {"in_features": 3, "out_features": 3}, "does not turn an image|restores no images"),
    ],
)
def test_networks_that_cannot_be_are_refused(network, options, words, small):
    if network.startswith("spandrel") and not find_spec("spandrel"):
        pytest.skip("spandrel is not installed")
    with pytest.raises(ConfigError, match=words) as caught:
        build_network(replace(small, network=network, network_options=options, method="map"))
    assert str(caught.value).startswith("network: ")
    assert "\n" not in str(caught.value)


def test_the_command_that_installs_spandrel_is_named(small, monkeypatch):
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install samdeblur\[networks\]"):
        build_network(replace(small, network="spandrel:SwinIR"))


def test_options_of_the_command_line_reach_the_network(samdeblur, store, tmp_path):
    given = {"width": 4, "levels": 1, "blocks": 1}
    options = [text for name, value in given.items() for text in ("--set", f"network_options.{name}={value}")]
    short = ("--steps", "2", "--batch-size", "2", "--set", "crop_size=16", "--set", "val_every=2", "--device", "cpu")
    done = samdeblur("train", store.path, "--config", "unet", "--out", tmp_path / "r", *options, *short)
    assert done.code == 0, done.err
    assert load_network(tmp_path / "r").network.config == {"width": 4, "levels": 1, "blocks": 1}
    done = samdeblur("train", store.path, "--config", "unet", "--out", tmp_path / "s", "--set", "width=3", *short)
    assert (done.code, "width: a setting of nafnet only; network unet takes network_options" in done.err) == (2, True)


def test_files_that_name_a_network_with_strange_values_are_refused(tmp_path, small):
    state = build_network(replace(small, network="unet", network_options={"width": 4, "levels": 1, "blocks": 1}))
    for config in (
        {"name": "unet", "width": 4, "levels": 1000, "blocks": 1},
        {"name": "unet", "width": 4, "levels": 1, "blocks": 1000},
        {"name": "unet", "depth": 4},
        {"name": "os:system", "options": {"command": f"touch {tmp_path}/trace"}, "multiple": 1, "square": False},
        {"name": "os:system", "options": {"command": f"touch {tmp_path}/trace"}},
        {"name": "spandrel:Nothing", "options": {}, "multiple": 1, "square": False},
        {"name": 3},
        {"width": 4},
        {"name": f"{__name__}:Halved", "options": {}},
        {"name": "torch.nn:Upsample", "options": {"scale_factor": 2}},
    ):
        metadata = {"samdeblur": json.dumps({"network": config, "prior": None})}
        save_file(state.state_dict(), tmp_path / "a.safetensors", metadata)
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "a.safetensors")
        assert "\n" not in str(caught.value)
    assert not Path(tmp_path / "trace").exists()


def test_only_networks_built_by_name_are_saved_with_what_builds_them():
    assert named.name_of(NAFNet(4, (1,), 1, (1,))) == "nafnet"
    assert named.name_of(nn.Identity()) is None

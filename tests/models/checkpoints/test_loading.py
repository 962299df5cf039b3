from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samdeblur.models import (
    METHODS,
    SEMANTICS,
    AtomBatch,
    CheckpointError,
    NAFNet,
    describe_checkpoint,
    load_network,
    load_sam,
    prior_for,
    with_prior,
)
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.storage import AtomMap

CONFIG = {"width": 4, "enc_blk_nums": [1, 2], "middle_blk_num": 1, "dec_blk_nums": [2, 1]}


def _nafnet(seed: int = 0, **changes: object) -> NAFNet:
    network, generator = NAFNet(**CONFIG | changes), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def atoms(random_masks):
    return AtomBatch.collate([AtomMap.from_masks(random_masks(np.random.default_rng(0), 7, 21, 30))])


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("folder", [False, True], ids=["file", "run folder"])
def test_a_saved_network_comes_back_with_its_prior(tmp_path, image, atoms, method, folder, semantics):
    backbone = _nafnet()
    prior = prior_for(method, channels=3, semantics=semantics, multiple=backbone.multiple)
    network = with_prior(backbone, prior, "default").eval()
    (tmp_path / "best.safetensors").write_bytes(encode_network(network))
    loaded = load_network(tmp_path if folder else str(tmp_path / "best.safetensors"))
    assert torch.equal(loaded(image, atoms), network(image, atoms))
    assert not loaded.training
    assert loaded.network.config == CONFIG
    assert (loaded.prior and loaded.prior.config) == (network.prior and network.prior.config)
    assert type(loaded.prior) is type(network.prior)
    assert encode_network(loaded) == encode_network(network)
    assert loaded.recognised == describe_checkpoint(tmp_path / "best.safetensors")
    assert loaded.recognised.startswith("a network of samdeblur: NAFNet (width 4, ")


def test_the_size_of_training_crops_is_kept_where_it_is_known(tmp_path):
    network, path = with_prior(_nafnet(), None), tmp_path / "x.safetensors"
    for size in (None, 96):
        network.train_size = size
        path.write_bytes(encode_network(network))
        assert load_network(path).train_size == size
    for wrong in ("96", 0, True, 1.5):
        network.train_size = wrong
        path.write_bytes(encode_network(network))
        with pytest.raises(CheckpointError, match=f"train_size {wrong!r} is not a number of pixels"):
            load_network(path)


def test_the_bundled_network_says_what_it_was_trained_on():
    network = load_network("bundled")
    assert (network.train_size, network.local_means) == (128, True)


def test_weights_that_ask_for_local_means_come_back_so_and_say_at_which_size(tmp_path):
    network, path = with_prior(_nafnet(), None), tmp_path / "n.safetensors"
    assert not network.local_means
    network.train_size, network.local_means = 64, True
    path.write_bytes(encode_network(network))
    assert load_network(path).local_means
    network.train_size = None
    path.write_bytes(encode_network(network))
    with pytest.raises(CheckpointError, match="local_means without train_size"):
        load_network(path)


def test_only_networks_whose_configuration_is_known_are_saved():
    with pytest.raises(ValueError, match="not Conv2d"):
        encode_network(with_prior(torch.nn.Conv2d(3, 3, 3), None))


@pytest.mark.parametrize("changes", [{}, {"width": 6}, {"enc_blk_nums": [3], "dec_blk_nums": [1], "middle_blk_num": 2}])
@pytest.mark.parametrize("wrap", [lambda state: {"params": state}, dict, lambda state: {"params": OrderedDict(state)}])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_public_nafnet_loads_with_the_arguments_read_off_its_weights(tmp_path, image, atoms, changes, wrap, legacy):
    network = _nafnet(**changes)
    torch.save(wrap(network.state_dict()), tmp_path / "NAFNet.pth", _use_new_zipfile_serialization=not legacy)
    loaded = load_network(tmp_path / "NAFNet.pth")
    assert loaded.network.config == CONFIG | changes
    assert loaded.prior is None
    assert loaded.recognised.startswith("a public NAFNet, or the released SAM-Deblur network without masks")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(image, atoms), network(image))


def test_a_safetensors_file_of_a_plain_nafnet_loads_too(tmp_path, image):
    network = _nafnet()
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    assert torch.equal(load_network(tmp_path / "plain.safetensors")(image), network(image))


@pytest.mark.parametrize("image_size", [64, 80])  # 80: the windows do not divide the 5x5 grid
@pytest.mark.parametrize("multimask", [False, True])
def test_a_sam_comes_back_bit_for_bit(tmp_path, random_sam, image_size, multimask):
    sam = random_sam(image_size, seed=3)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth")
    generator = torch.Generator().manual_seed(0)
    image = {
        "image": torch.rand(3, image_size - 16, image_size, generator=generator) * 255,
        "original_size": (40, 60),
        "point_coords": torch.rand(4, 1, 2, generator=generator) * 40,
        "point_labels": torch.ones(4, 1),
        "boxes": torch.tensor([[3.0, 4.0, 30.0, 35.0]] * 4),
        "mask_inputs": torch.randn(4, 1, image_size // 4, image_size // 4, generator=generator),
    }
    (found,), (expected,) = loaded([image], multimask), sam([image], multimask)
    assert sorted(found) == sorted(expected) == ["iou_predictions", "low_res_logits", "masks"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["low_res_logits"][0], found["low_res_logits"][1])
    assert not loaded.training
    assert torch.equal(loaded.pixel_mean, sam.pixel_mean)


# Refusals: one line each that names the file


def _refusal(load, path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message.replace(str(path), "PATH")


LOADERS = pytest.mark.parametrize("load", [load_network, load_sam])


class _Code:
    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@LOADERS
@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors", "folder"])
def test_a_missing_file_is_named(tmp_path, load, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=name) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


@LOADERS
def test_bundled_means_the_bundled_weights_whatever_lies_in_the_folder(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bundled").write_text("hello")
    assert load("bundled").state_dict()
    assert _refusal(load, tmp_path / "bundled")


@LOADERS
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE html><html>404 Not Found</html>\n" * 50, id="web page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n", id="pointer"),
        pytest.param("é\n".encode(), id="text"),
        pytest.param(bytes(range(256)) * 8, id="bytes"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), id="image"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="broken zip"),
        pytest.param(pickle.dumps({"a": 1}, protocol=2), id="pickle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, load, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "PATH: not a" in _refusal(load, path)


@LOADERS
@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, load, name, share):
    path, state = tmp_path / name, _nafnet().state_dict()
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "legacy.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "not a" in _refusal(load, path)


@LOADERS
@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, load, write):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"params": _nafnet().state_dict() | {"x": _Code(str(trace))}}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    _refusal(load, path)
    assert not trace.exists()


@LOADERS
@pytest.mark.parametrize(
    "content",
    [
        *([1, 2], torch.zeros(3), "text", 7, None, {}),
        *({"params": 3}, {"params": {}}, {"params": {"intro.weight": 3}}, {0: torch.zeros(1)}),
        *({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, {"intro.weight": torch.tensor(1.0)}),
        {"image_encoder.patch_embed.proj.weight": torch.zeros(3)},
    ],
    ids=lambda content: str(content)[:60].replace("\n", " "),
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, load, content):
    torch.save(content, tmp_path / "else.pth")
    _refusal(load, tmp_path / "else.pth")


@pytest.mark.parametrize(
    "metadata",
    [
        "{",
        "{}",
        "[]",
        json.dumps({"network": {"name": "nafnet", **CONFIG, "width": 8}, "prior": None}),
        json.dumps({"network": {"name": "nafnet", **CONFIG, "depth": 3}, "prior": None}),
        json.dumps({"network": {"name": "nafnet", **CONFIG, "middle_blk_num": 10**12}, "prior": None}),
        json.dumps({"network": {"name": "nafnet", **CONFIG}, "prior": {"name": "map", "channels": 2, "dropout": 0.5}}),
        json.dumps({"network": {"name": "nafnet", **CONFIG}, "prior": {"name": "edges"}}),
        json.dumps({"network": {"name": "nafnet", **CONFIG}, "prior": {"name": "cat", "shades": 3}}),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_or_this_version_is_refused(tmp_path, metadata):
    state = with_prior(_nafnet(), None).state_dict()
    save_file(state, tmp_path / "net.safetensors", {"samdeblur": metadata})
    _refusal(load_network, tmp_path / "net.safetensors")


def test_a_sam_is_no_deblurring_network(tmp_path, random_sam):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    assert "Segment Anything" in _refusal(load_network, tmp_path / "sam.pth")


@pytest.mark.parametrize("wrap", [dict, lambda state: {"params": state}], ids=["bare", "as published"])
def test_a_nafnet_is_no_sam_and_is_recognised(tmp_path, wrap):
    torch.save(wrap(_nafnet().state_dict()), tmp_path / "NAFNet.pth")
    message = _refusal(load_sam, tmp_path / "NAFNet.pth")
    assert "not a Segment Anything checkpoint" in message
    assert "a public NAFNet" in message


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("encoder_level1.0.norm1.body.weight", "Restormer"),
        ("conv_first.weight", "SwinIR"),
        ("Encoder.0.layers.0.main.0.main.0.weight", "MIMO-UNet"),
        ("something.weight", "something.weight"),
    ],
)
@pytest.mark.parametrize("wrap", [dict, lambda state: {"params": state}], ids=["bare", "in params"])
def test_weights_of_other_networks_are_recognised_or_quoted(tmp_path, key, name, wrap):
    torch.save(wrap({key: torch.zeros(4, 3, 3, 3)}), tmp_path / "other.pth")
    message = _refusal(load_network, tmp_path / "other.pth")
    assert "not a deblurring checkpoint" in message
    assert name in message


def _without(state: dict, part: str) -> dict:
    return {key: tensor for key, tensor in state.items() if part not in key}


def _pre_seg(channels: int) -> dict:
    """The encoder of the released MAP."""
    return {
        "pre_seg__weight": torch.zeros(channels, 3, 3, 3),
        "pre_seg__bias": torch.zeros(channels),
        "pre_seg_in__weight": torch.zeros(channels, channels, 1, 1),
        "pre_seg_in__bias": torch.zeros(channels),
    }


def _with(state: dict, **changes: torch.Tensor) -> dict:
    return state | {key.replace("__", "."): tensor for key, tensor in changes.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            lambda state: _with(state, ending__bias=torch.zeros(4)),
            "a public NAFNet (of another shape: ending.bias (4,) instead of (3,))",
            id="shape",
        ),
        pytest.param(
            lambda state: _with(state, surplus=torch.zeros(4)), "a public NAFNet (extra: surplus)", id="one too many"
        ),
        pytest.param(
            lambda state: _without(state, "ending.bias"), "a public NAFNet (missing: ending.bias)", id="lacks a bias"
        ),
        pytest.param(
            lambda state: _without(state, "downs.1"), "a public NAFNet (extra: encoders.1.0.beta", id="lacks a level"
        ),
        pytest.param(
            lambda state: _without(state, "intro"),
            "a public NAFNet (missing: intro.weight, intro.bias)",
            id="lacks the intro",
        ),
        pytest.param(
            lambda state: _without(state, "encoders.1.1.conv"),
            "a public NAFNet (missing: encoders.1.1.conv1.weight, encoders.1.1.conv1.bias and 8 more)",
            id="lacks a part of a block",
        ),
        pytest.param(
            lambda state: _with(state, encoders__1__123456789__beta=torch.zeros(1, 8, 1, 1)),
            "a public NAFNet (number 123456789 in ",
            id="an absurd number",
        ),
        pytest.param(
            lambda state: _with(state, intro__weight=torch.zeros(4, 4, 3, 3), surplus=torch.zeros(4)),
            "the released SAM-Deblur network with CAT (extra: surplus)",
            id="CAT",
        ),
        pytest.param(
            lambda state: _with(state, intro__weight=torch.zeros(4, 5, 3, 3)),
            "the released SAM-Deblur network with MAP (missing: pre_seg.weight, pre_seg.bias and 2 more)",
            id="MAP without its encoder",
        ),
        pytest.param(  # as in an early version of the released code
            lambda state: _with(
                state,
                intro__weight=torch.zeros(4, 5, 3, 3),
                pre_seg__weight=torch.zeros(2, 3, 3, 3),
                pre_seg__bias=torch.zeros(2),
            ),
            "the released SAM-Deblur network with MAP (missing: pre_seg_in.weight, pre_seg_in.bias)",
            id="MAP without its 1x1 convolution",
        ),
        pytest.param(
            lambda state: _with(state, **_pre_seg(2)),
            "the released SAM-Deblur network with MAP (of another shape: "
            "intro.weight (4, 3, 3, 3) instead of (4, 5, 3, 3))",
            id="MAP that was not widened",
        ),
    ],
)
def test_public_weights_that_do_not_fit_are_refused_with_the_nearest_guess(tmp_path, change, words):
    torch.save({"params": change(_nafnet().state_dict())}, tmp_path / "weights.pth")
    message = _refusal(load_network, tmp_path / "weights.pth")
    assert f"PATH: not a deblurring checkpoint, it looks like {words}" in message
    assert _refusal(describe_checkpoint, tmp_path / "weights.pth") == message


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_released_networks_of_other_widths_are_recognised_too(tmp_path, image, atoms, channels):
    state = _with(_nafnet().state_dict(), intro__weight=torch.zeros(4, 3 + channels, 3, 3), **_pre_seg(channels))
    torch.save({"params": state}, tmp_path / "released.pth")
    loaded = load_network(tmp_path / "released.pth")
    assert loaded.prior.config == {"name": "released-map", "channels": channels, "dropout": 0.5, "multiple": 4}
    assert loaded(image, atoms).shape == image.shape
    assert "the released SAM-Deblur network with MAP" in describe_checkpoint(tmp_path / "released.pth")


def test_describing_a_checkpoint_takes_what_loading_takes(tmp_path):
    assert describe_checkpoint("bundled").startswith("a network of samdeblur: NAFNet (width 16, ")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        describe_checkpoint(tmp_path / "gone.pth")


_SAM_KEYS = [
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.pos_embed",
    "image_encoder.blocks.0.attn.rel_pos_h",
    "image_encoder.blocks.0.mlp.lin1.weight",
    "image_encoder.blocks.1.norm1.bias",
    "image_encoder.neck.0.weight",
    "prompt_encoder.mask_downscaling.3.weight",
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    "mask_decoder.iou_prediction_head.layers.0.weight",
]


@pytest.mark.parametrize("key", _SAM_KEYS)
@pytest.mark.parametrize("change", ["longer", "flat", "gone"])
def test_sam_weights_that_do_not_fit_are_refused(tmp_path, random_sam, key, change):
    state = dict(random_sam().state_dict())
    tensor = state.pop(key)
    if change == "longer":
        state[key] = torch.cat([tensor, tensor[:1]])
    elif change == "flat":
        state[key] = tensor[None] if tensor.ndim == 1 else tensor.flatten()
    torch.save(state, tmp_path / "sam.pth")
    _refusal(load_sam, tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weight: torch.zeros(1).expand(weight.shape), "claims .* numbers and holds fewer"),
        (lambda weight: torch.zeros(1).expand(1 << 20, 1 << 20), "claims 1,099,511,627,776 numbers"),
        (lambda weight: weight.to_sparse(), "is sparse"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "is quantised"),
        (lambda weight: weight.to("meta"), "is without data"),
    ],
    ids=["expanded", "a terabyte", "sparse", "quantised", "meta"],
)
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_tensors_whose_numbers_are_not_there_are_refused_in_one_line(tmp_path, spoil, words):
    state = NAFNet(4, (1,), 1, (1,)).state_dict()
    state["intro.weight"] = spoil(state["intro.weight"])
    torch.save({"params": state}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_network(tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["downs.1000000000.weight", "middle_blks.4000000000.beta", "encoders.0.999999999.beta"])
def test_numbers_in_names_that_no_file_can_back_are_refused_at_once(tmp_path, key):
    state = NAFNet(4, (1,), 1, (1,)).state_dict() | {key: torch.zeros(1)}
    torch.save(state, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=key.split(".")[-2]):
        load_network(tmp_path / "deep.pth")


def test_numbers_in_names_of_a_sam_that_no_file_can_back_are_refused_at_once(tmp_path, random_sam):
    state = random_sam().state_dict()
    state["image_encoder.blocks.1000000000.attn.rel_pos_h"] = torch.zeros(1)
    torch.save(state, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match="1000000000"):
        load_sam(tmp_path / "deep.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, dtype):
    state = _nafnet().state_dict()
    torch.save({"params": state | {"intro.weight": state["intro.weight"].to(dtype)}}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=f"'intro.weight' is of {str(dtype)[6:]}; save"):
        load_network(tmp_path / "whole.pth")

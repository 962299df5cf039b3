"""Checkpoints as people have them, in wrappers and under prefixes of trainers: NAFNet and Segment Anything."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from samdeblur.models import CheckpointError, NAFNet, load_network, load_sam
from samdeblur.models.checkpoints.finding import SeveralNetworks
from samdeblur.models.checkpoints.loading import checkpoint_digest

State = dict[str, torch.Tensor]


def _nafnet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NAFNet(4, (1,), 1, (1,))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(scope="module", params=["NAFNet", "SAM"])
def kind(request, random_sam) -> tuple[nn.Module, nn.Module, Callable[[Any], nn.Module]]:
    """Two networks of a kind and what loads them."""
    if request.param == "NAFNet":
        return _nafnet(0), _nafnet(1), load_network
    return random_sam(seed=0), random_sam(seed=1), load_sam


def _state(model: nn.Module) -> State:
    return dict(getattr(model, "network", model).state_dict())


def _assert_loads(load: Callable[[Any], nn.Module], place: Any, expected: nn.Module) -> None:
    found, wanted = _state(load(place)), _state(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPERS = (
    *("params_ema", "params", "state_dict", "model", "net", "generator", "ema_model", "model_ema", "network"),
    *("state_dict_ema", "model_state_dict", "netG", "weights", "ema", "teacher"),
)
PREFIXES = (
    *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net_g.", "generator."),
    *("model.module._orig_mod.", "_fsdp_wrapped_module.", "pipeline.restorer."),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(kind, wrapper, tmp_path):
    network, _, load = kind
    extra = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}}
    torch.save({wrapper: network.state_dict()} | extra, tmp_path / "a.ckpt")
    _assert_loads(load, tmp_path / "a.ckpt", network)


@pytest.mark.parametrize("form", ["pth", "legacy.pt", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off(kind, prefix, form, tmp_path):
    network, _, load = kind
    state, path = _under(prefix, _state(network)), tmp_path / f"a.{form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"params": state}, path, _use_new_zipfile_serialization=form == "pth")
    _assert_loads(load, path, network)


def _lightning(state: State) -> dict[str, Any]:
    """With what Lightning writes beside the network, and a loss with a network of its own."""
    return {
        "epoch": 9,
        "global_step": 900,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": _under("model.", state) | {"loss.vgg.0.weight": torch.zeros(3, 3)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(1.0), "path": ""}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(9.0)}}, "param_groups": [{"params": [0]}]}],
        "lr_schedulers": [{"last_epoch": 9}],
        "hyper_parameters": argparse.Namespace(lr=0.1, betas=(0.9, 0.9)),
    }


LAYOUTS: dict[str, Callable[[nn.Module], Any]] = {
    "Lightning with a Namespace of arguments": lambda network: _lightning(_state(network)),
    "BasicSR's training state": lambda network: {
        "params": _state(network),
        "iter": 5,
        "extra": None,
    },
    "DDP and compile, in timm's layout": lambda network: {
        "epoch": 1,
        "arch": "x",
        "state_dict": _under("module._orig_mod.", _state(network)),
        "args": argparse.Namespace(model="x"),
        "metric": 31.2,
    },
    "two deep": lambda network: {"checkpoint": {"generator": {"state_dict": _state(network)}}},
    "torch's AveragedModel": lambda network: {"model": AveragedModel(network).state_dict()},
    "a generator and a discriminator": lambda network: {
        "netG": _state(network),
        "netD": {"features.0.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(1)},
    },
    "a block compiled alone": lambda network: {
        re.sub(r"^(middle_blks|mask_decoder\.transformer)\.", r"\1._orig_mod.", name): tensor
        for name, tensor in _state(network).items()
    },
    "profiled with thop": lambda network: (
        _state(network) | {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    ),
    "parameters, not tensors": lambda network: {
        "net": dict(network.named_parameters()) | dict(network.named_buffers())
    },
    "the module itself": lambda network: network,
    "the module itself in DDP's wrapper": lambda network: {"model": nn.Sequential(network), "epoch": 1},
    "half precision": lambda network: {
        "model": {name: tensor.half().float() for name, tensor in _state(network).items()}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_trainers_are_read(kind, layout, tmp_path):
    network, _, load = kind
    torch.save(LAYOUTS[layout](network), tmp_path / "a.pt")
    if layout == "half precision":
        found, wanted = _state(load(tmp_path / "a.pt")), _state(network)
        assert all(torch.equal(found[name], wanted[name].half().float()) for name in wanted)
    else:
        _assert_loads(load, tmp_path / "a.pt", network)


def test_a_safetensors_file_without_its_ending_is_read(kind, tmp_path):
    network, _, load = kind
    save_file(_under("module.", _state(network)), tmp_path / "8f3c0a")  # as in a cache of downloads
    _assert_loads(load, tmp_path / "8f3c0a", network)


AVERAGED = {
    "params, params_ema": ("params", "params_ema"),
    "model, model_ema": ("model", "model_ema"),
    "state_dict, state_dict_ema": ("state_dict", "state_dict_ema"),
    "net_g, net_g_ema": ("net_g", "net_g_ema"),
    "generator, ema": ("generator", "ema"),
}


@pytest.mark.parametrize("names", AVERAGED.values(), ids=AVERAGED)
@pytest.mark.parametrize("as_prefix", [False, True], ids=["wrappers", "prefixes"])
def test_of_weights_and_their_average_the_average_is_taken_said_and_can_be_chosen(kind, names, as_prefix, tmp_path):
    network, average, load = kind
    path = tmp_path / "a.pth"
    if as_prefix:
        torch.save(_under(f"{names[0]}.", _state(network)) | _under(f"{names[1]}.", _state(average)), path)
    else:
        torch.save({names[0]: _state(network), names[1]: _state(average)}, path)
    with pytest.warns(SeveralNetworks, match=rf"takes {names[1]}; to take the other, name .*a\.pth#{names[0]}"):
        _assert_loads(load, path, average)
    _assert_loads(load, f"{path}#{names[0]}", network)
    _assert_loads(load, f"{path}#{names[1]}", average)


def test_an_average_that_is_no_other_is_not_spoken_of(kind, tmp_path):
    network, _, load = kind
    torch.save({"params": _state(network), "params_ema": _state(network)}, tmp_path / "a.pth")
    _assert_loads(load, tmp_path / "a.pth", network)  # a warning would fail


UNREAD = {
    "torch_ema": lambda state: {"model": state, "ema": {"decay": 0.9, "shadow_params": list(state.values())}},
    "names without dots": lambda state: {
        "state_dict": _under("model.", state)
        | {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
        | {"model_ema.decay": torch.tensor(0.9)}
    },
}


@pytest.mark.parametrize("layout", UNREAD)
def test_an_average_in_a_form_that_is_not_read_is_spoken_of(tmp_path, layout):
    network = _nafnet()
    torch.save(UNREAD[layout](_state(network)), tmp_path / "a.pth")
    with pytest.warns(SeveralNetworks, match="ema.* looks like an average of the weights, in a form that is not read"):
        _assert_loads(load_network, tmp_path / "a.pth", network)


@pytest.mark.parametrize("more", [{"ema_decay": 0.9}, {"n_averaged": torch.tensor(3)}, {"ema": None}, {"ema": {}}])
def test_numbers_about_an_average_are_no_average(tmp_path, more):
    network = _nafnet()
    torch.save({"model": _state(network)} | more, tmp_path / "a.pth")
    _assert_loads(load_network, tmp_path / "a.pth", network)  # a warning would fail


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_weights_that_are_no_numbers_are_refused(kind, tmp_path, name):
    network, _, load = kind
    state = {key: tensor.clone() for key, tensor in _state(network).items()}
    next(iter(state.values())).view(-1)[0] = torch.nan
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    with pytest.raises(CheckpointError, match="holds NaN: its training failed"):
        load(tmp_path / name)


def test_of_two_networks_of_a_kind_nothing_is_guessed(kind, tmp_path):
    network, other, load = kind
    path = tmp_path / "a.pth"
    torch.save({"netG_A": _state(network), "netG_B": _state(other)}, path)
    with pytest.raises(CheckpointError, match=r"several networks .*: .*a\.pth#netG_A, .*a\.pth#netG_B"):
        load(path)
    _assert_loads(load, f"{path}#netG_B", other)


def test_a_part_deep_in_a_file_is_named_by_any_of_its_segments(kind, tmp_path):
    network, other, load = kind
    path = tmp_path / "a.pth"
    torch.save({"ckpt": {"one": {"state_dict": _state(network)}, "two": {"state_dict": _state(other)}}}, path)
    for part in ("one", "ckpt.one", "one.state_dict", "ckpt.one.state_dict"):
        _assert_loads(load, f"{path}#{part}", network)
    with pytest.raises(CheckpointError, match="several networks"):
        load(f"{path}#state_dict")


def test_a_part_that_is_not_there_is_refused_with_the_nearest(kind, tmp_path):
    network, other, load = kind
    path = tmp_path / "a.pth"
    torch.save({"params": _state(network), "params_ema": _state(other)}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth: no part 'param_ema' .*did you mean params_ema\?"):
        load(f"{path}#param_ema")
    with pytest.raises(FileNotFoundError, match=r"b\.pth: no such checkpoint"):
        load(tmp_path / "b.pth#params")


def test_a_file_may_have_the_sign_in_its_name(kind, tmp_path):
    network, other, load = kind
    torch.save({"params": _state(network), "params_ema": _state(other)}, tmp_path / "a#1.pth")
    _assert_loads(load, tmp_path / "a#1.pth#params", network)


def test_parts_of_one_file_are_told_apart_wherever_weights_are_recognised(tmp_path):
    torch.save({"params": _state(_nafnet(0)), "params_ema": _state(_nafnet(1))}, tmp_path / "a.pth")
    whole, *parts = (checkpoint_digest(tmp_path / name) for name in ("a.pth", "a.pth#params", "a.pth#params_ema"))
    assert parts == [f"{whole}#params", f"{whole}#params_ema"]


# Refusals


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"params": {"module.conv_first.weight": torch.zeros(2), "module.x": torch.zeros(1)}}, "SwinIR.*params.module"),
        ({"state_dict": {"model.patch_embed.proj.weight": torch.zeros(2)}}, r"Restormer.*found at state_dict\.model"),
        (
            {"shadow_params": [torch.zeros(2), torch.zeros(3)], "decay": 0.9},
            "'shadow_params' are tensors without",
        ),
        ({"epoch": 1, "lr": 0.1}, "it holds 'epoch', 'lr'"),
        ({"params": {"intro.weight": torch.zeros(4, 3, 3, 3), "ending.weight": 3}}, "'ending.weight' is not a tensor"),
        ({"network.intro.weight": torch.zeros(4, 3, 3, 3), "prior_conv.weight": torch.zeros(1)}, "without its config"),
        ({"model": {"vision_encoder.patch_embed.projection.weight": torch.zeros(1)}}, "transformers.*found at model"),
        ({"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(1)}}, "Segment Anything 2"),
    ],
)
def test_refusals_name_the_place_and_the_nearest_architecture(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_network(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_other_kinds_of_files_are_named(tmp_path):
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 3, 1)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a TorchScript archive; save the state_dict"):
        load_network(tmp_path / "a.pt")
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_network(tmp_path / "a.pth")


class _Act:
    """Does something when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> Any:
        return self.call, self.given


@pytest.mark.parametrize("call", [os.mkdir, os.system, exec, eval, print, argparse.Namespace.__init__, warnings.warn])
def test_what_a_file_asks_to_call_is_not_called(tmp_path, call, capfd):
    trace = tmp_path / "trace"
    given = {os.mkdir: str(trace), os.system: f"touch {trace}"}.get(call, f"open({str(trace)!r}, 'w')")
    torch.save({"params": _state(_nafnet()), "args": _Act(call, given)}, tmp_path / "a.pth")
    with contextlib.suppress(CheckpointError):
        _assert_loads(load_network, tmp_path / "a.pth", _nafnet())
    assert not trace.exists()
    assert not capfd.readouterr().out

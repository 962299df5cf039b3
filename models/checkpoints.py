"""Reading and writing weights: networks of this package, public NAFNet checkpoints, Segment Anything models."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor, nn

from samdeblur.models.attach import Deblurrer, with_prior
from samdeblur.models.nafnet import NAFNet, infer_config
from samdeblur.models.priors import build_prior
from samdeblur.models.sam import build_sam

METADATA_KEY = "samdeblur"
BEST_WEIGHTS = "best.safetensors"  # name of the best weights in the folder of a training run

# A key that gives away whose checkpoint a file is, for the message that refuses it.
_KNOWN_KEYS = {
    "pre_seg.weight": "a released SAM-Deblur network, which this version does not read yet",
    "image_encoder.patch_embed.proj.weight": "a Segment Anything model; pass it to --sam",
    "intro.weight": "a NAFNet",
    "patch_embed.proj.weight": "a Restormer",
    "encoder_level1.0.norm1.body.weight": "a Restormer",
    "conv_first.weight": "a SwinIR, ESRGAN or similar network",
    "Encoder.0.layers.0.main.0.main.0.weight": "a MIMO-UNet",
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or one of another network than expected."""


def encode_network(network: Deblurrer) -> bytes:
    """A network with its configuration as the bytes of a safetensors file, which `load_network` reads."""
    if not isinstance(network.network, NAFNet):
        raise ValueError(f"only NAFNet can be saved with its configuration, not {type(network.network).__name__}")
    config = {
        "network": {"name": "nafnet", **network.network.config},
        "prior": network.prior.config if network.prior is not None else None,
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    return save(state, {METADATA_KEY: json.dumps(config, sort_keys=True)})


def load_network(path: str | Path) -> Deblurrer:
    """A deblurring network in evaluation mode, from a file or run folder of this package, or a public NAFNet file.

    Hyper-parameters come from the file. See `Deblurrer` for how to call it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of another network.
    """
    path = resolve_checkpoint(Path(path))
    state, config = read_state(path)
    if config is None:
        state = state.get("params", state)
        network = with_prior(_build_nafnet(path, state), None)
        _load(network.network, state, path)
    else:
        arguments = {key: value for key, value in config["network"].items() if key != "name"}
        network = with_prior(NAFNet(**arguments), build_prior(config["prior"]))
        _load(network, state, path)
    return network.eval()


def load_sam(path: str | Path) -> Sam:
    """A segment_anything Sam in evaluation mode; its architecture is inferred from the checkpoint.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or not of a Segment Anything model.
    """
    path = resolve_checkpoint(Path(path))
    state, _ = read_state(path)
    try:
        sam = build_sam(state)
    except KeyError as error:
        raise CheckpointError(f"{path}: not a Segment Anything checkpoint, {_guess(state)} (no {error})") from error
    _load(sam, state, path)
    return sam.eval()


def resolve_checkpoint(path: Path) -> Path:
    """The file a path stands for: itself, or the best weights of a training run's folder.

    Raises FileNotFoundError, and CheckpointError for `bundled`.
    """
    if str(path) == "bundled" and not path.exists():
        raise CheckpointError("bundled: this version carries no weights; give the path of a checkpoint")
    if path.is_dir():
        path = path / BEST_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The tensors of a safetensors or torch file, and the configuration this package wrote beside them, if it did.

    Never unpickles code. Raises CheckpointError.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = (file.metadata() or {}).get(METADATA_KEY)
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
                return state, json.loads(metadata) if metadata else None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        raise CheckpointError(f"{path}: not a checkpoint; {kind} cannot read it ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint, it holds a {type(state).__name__}")
    return state, None


def _build_nafnet(path: Path, state: dict[str, Tensor]) -> NAFNet:
    try:
        config = infer_config(state)
    except KeyError as error:
        raise CheckpointError(f"{path}: not a NAFNet checkpoint, {_guess(state)} (no {error})") from error
    return NAFNet(**config)  # type: ignore[arg-type]


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f"{path}: weights do not fit the network, {_guess(state)} ({lines[0][:160]})") from error


def _guess(state: dict[str, Any]) -> str:
    for key, meaning in _KNOWN_KEYS.items():
        if key in state:
            return f"it looks like {meaning}"
    return f"its first key is {next(iter(state), 'missing')!r}"

"""Reading and writing weights: networks of this package, public NAFNet checkpoints, Segment Anything models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor

from samdeblur.models.attach import Deblurrer, with_prior
from samdeblur.models.nafnet import NAFNet, infer_config
from samdeblur.models.priors import build_prior
from samdeblur.models.sam import METADATA_KEY, SamConfig, build_sam, build_small_sam

BUNDLED = Path(__file__).parent / "bundled"  # weights this package carries, each with a card
BUNDLED_NETWORK, BUNDLED_SAM = BUNDLED / "nafnet.safetensors", BUNDLED / "sam.safetensors"
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

    "bundled" is the small NAFNet this package carries. Hyper-parameters come from the file. See `Deblurrer` for how to
    call it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of another network.
    """
    path = resolve_checkpoint(Path(path), BUNDLED_NETWORK)
    state, config = _read_weights(path)
    with _explained(path, state, "deblurring" if config is not None else "NAFNet"):
        if config is None:
            network = with_prior(NAFNet(**infer_config(state)), None)  # type: ignore[arg-type]
            network.network.load_state_dict(state)
        else:
            arguments = {key: value for key, value in config["network"].items() if key != "name"}
            network = with_prior(NAFNet(**arguments), build_prior(config["prior"]))
            network.load_state_dict(state)
    return network.eval()


def load_sam(path: str | Path) -> Sam:
    """A segment_anything Sam in evaluation mode; its architecture is inferred from the checkpoint.

    "bundled" is the small Sam this package carries; `BUNDLED_SETTINGS` of samdeblur.pipeline suit it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or not of a Segment Anything model.
    """
    path = resolve_checkpoint(Path(path), BUNDLED_SAM)
    state, config = _read_weights(path)
    with _explained(path, state, "Segment Anything"):
        sam = build_small_sam(SamConfig(**config["sam"])) if config is not None else build_sam(state)
        sam.load_state_dict(state)
    return sam.eval()


def resolve_checkpoint(path: Path, bundled: Path) -> Path:
    """The file a path stands for: itself, the best weights of a training run's folder, or `bundled` for that word
    (give the full path of a file of that name).

    Raises FileNotFoundError.
    """
    if str(path) == "bundled":
        return bundled
    if path.is_dir():
        path = path / BEST_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


def read_torch(path: Path) -> Any:
    """What a torch file holds. Never unpickles code. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise CheckpointError(f"{path}: not a checkpoint; torch cannot read it ({type(error).__name__})") from error


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, and the configuration this package wrote beside them. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = (file.metadata() or {}).get(METADATA_KEY)
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
                return state, json.loads(metadata) if metadata else None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a checkpoint; safetensors cannot read it") from error
    found = read_torch(path)
    state = found.get("params", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path}: not a checkpoint of a network, which maps names to tensors")
    return state, None


@contextmanager
def _explained(path: Path, state: dict[str, Tensor], expected: str) -> Iterator[None]:
    """Weights that do not fit the network they seem to be of raise all kinds of errors; here they become one."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, AssertionError, RuntimeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        detail = " ".join(detail.split())
        raise CheckpointError(f"{path}: not a {expected} checkpoint, {_guess(state)} ({detail[:200]})") from error


def _guess(state: dict[str, Any]) -> str:
    for key, meaning in _KNOWN_KEYS.items():
        if key in state:
            return f"it looks like {meaning}"
    return f"its first key is {next(iter(state), 'missing')!r}"

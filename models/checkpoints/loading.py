"""Reading and writing weights: networks of this package, public NAFNet and SAM-Deblur checkpoints, Segment Anything."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor

from samdeblur.models.checkpoints.public import BUNDLED_NETWORK, BUNDLED_SAM
from samdeblur.models.networks.nafnet import NAFNet, infer_config
from samdeblur.models.networks.sam import METADATA_KEY, SamConfig, build_sam, build_small_sam
from samdeblur.models.priors.attach import Deblurrer, with_prior
from samdeblur.models.priors.methods import MASK_DROPOUT, build_prior

BEST_WEIGHTS, LAST_WEIGHTS = "best.safetensors", "last.safetensors"  # in the folder of a training run

# What networks with the keys of a public NAFNet are, by the prior they bring.
_PUBLISHED = {
    "none": "a public NAFNet, or the released SAM-Deblur network without masks, whose keys are the same",
    "cat": "the released SAM-Deblur network with CAT",
    "map": "the released SAM-Deblur network with MAP, trained with or without mask dropout, which keys do not tell",
}

# A key that gives away whose checkpoint a file is, for the message that refuses it.
_KNOWN_KEYS = {
    "network.intro.weight": "a network of samdeblur",
    "image_encoder.patch_embed.proj.weight": "a Segment Anything model; pass it to --sam",
    "patch_embed.proj.weight": "a Restormer",
    "encoder_level1.0.norm1.body.weight": "a Restormer",
    "conv_first.weight": "a SwinIR, ESRGAN or similar network",
    "Encoder.0.layers.0.main.0.main.0.weight": "a MIMO-UNet",
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or one of another network than expected."""


def encode_network(network: Deblurrer) -> bytes:
    """A network with its configuration as the bytes of a safetensors file, which `load_network` reads.

    Raises ValueError for a network that is no NAFNet.
    """
    if not isinstance(network.network, NAFNet):
        raise ValueError(f"only NAFNet can be saved with its configuration, not {type(network.network).__name__}")
    config = {
        "network": {"name": "nafnet", **network.network.config},
        "prior": network.prior.config if network.prior is not None else None,
        **({"train_size": network.train_size} if network.train_size is not None else {}),
        **({"training": dict(network.provenance)} if network.provenance is not None else {}),
        **({"local_means": True} if network.local_means else {}),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    return save(state, {METADATA_KEY: json.dumps(config, sort_keys=True)})


def load_network(path: str | Path) -> Deblurrer:
    """A deblurring network in evaluation mode: of this package (a file or a run folder), a public NAFNet, or one of the
    four released SAM-Deblur networks, which get the `released` semantics.

    "bundled" is the small NAFNet this package carries. What a file is, its keys and shapes say; hyper-parameters come
    from the file. See `Deblurrer` for how to call it; its attribute `recognised` is what `describe_checkpoint` says.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of another network.
    """
    found = _read_network(path)
    network = with_prior(NAFNet(**found.network), build_prior(found.prior))
    network.load_state_dict(found.state)
    network.recognised, network.train_size, network.provenance = found.what, found.train_size, found.training
    network.local_means = found.local_means
    return network.eval()


def training_of(path: Path) -> dict[str, Any] | None:
    """Of which step of a run weights are, as `Deblurrer.provenance`, from the head of the file; None if it is silent.

    Raises CheckpointError.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            found = json.loads(metadata).get("training") if metadata else None
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint; safetensors cannot read it") from error
    return found if isinstance(found, dict) else None


def describe_checkpoint(path: str | Path) -> str:
    """What `load_network` takes a file for, in words. Raises as it does."""
    return _read_network(path).what


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

    Raises FileNotFoundError, and CheckpointError for a run that has no best weights yet.
    """
    if str(path) == "bundled":
        return bundled
    if path.is_dir():
        if not (path / BEST_WEIGHTS).exists() and (path / LAST_WEIGHTS).exists():
            raise CheckpointError(
                f"{path}: no {BEST_WEIGHTS} yet, for nothing was validated after step 0; go on training, or name "
                f"{path / LAST_WEIGHTS}"
            )
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


@dataclass(frozen=True)
class _Recognised:
    """A network found in a file."""

    what: str  # for people
    network: dict[str, Any]  # arguments of NAFNet
    prior: dict[str, Any] | None  # as `build_prior` takes it
    state: dict[str, Tensor]  # under the names of a Deblurrer
    train_size: int | None = None
    training: dict[str, Any] | None = None
    local_means: bool = False


def _expected(found: _Recognised, n_tensors: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the Deblurrer, without memory for its weights."""
    blocks = sum([*found.network["enc_blk_nums"], found.network["middle_blk_num"], *found.network["dec_blk_nums"]])
    if blocks > n_tensors:
        raise ValueError(f"{blocks} blocks in {n_tensors} tensors")
    with torch.device("meta"):
        network, prior = NAFNet(**found.network), build_prior(found.prior)
    shapes = {f"network.{name}": shape for name, shape in _shapes(network.state_dict()).items()}
    if prior is not None:
        shapes |= {f"prior.{name}": shape for name, shape in _shapes(prior.state_dict()).items()}
        width, _, *kernel = shapes["network.intro.weight"]
        shapes["prior_conv.weight"] = (width, prior.channels, *kernel)
    return shapes


def _read_network(path: str | Path) -> _Recognised:
    """Read a file, see what it is, and check that every name and shape is there. Raises as `load_network`."""
    path = resolve_checkpoint(Path(path), BUNDLED_NETWORK)
    state, config = _read_weights(path)
    with _explained(path, state, "deblurring"):
        return _recognise_public(state) if config is None else _recognise_own(state, config)


def _recognise_own(state: dict[str, Tensor], config: dict[str, Any]) -> _Recognised:
    arguments = {key: value for key, value in config["network"].items() if key != "name"}
    what, size = _describe("a network of samdeblur", arguments, config["prior"]), config.get("train_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"train_size {size!r} is no number of pixels")
    training, local = config.get("training"), config.get("local_means", False)
    if training is not None and not isinstance(training, dict):
        raise ValueError(f"training {training!r} is no mapping")
    if local and size is None:
        raise ValueError("local_means without train_size")
    found = _Recognised(what, arguments, config["prior"], state, size, training, bool(local))
    _compare(_shapes(state), _expected(found, len(state)))
    return found


def _recognise_public(state: dict[str, Tensor]) -> _Recognised:
    """A public NAFNet, or one whose first convolution was widened by the channels of a prior."""
    kind = _published_kind(state)
    if kind is None:
        raise ValueError("no intro.weight")
    ending = {"intro.weight": state["ending.weight"].transpose(0, 1)} if "intro.weight" not in state else {}
    arguments: dict[str, Any] = infer_config(state | ending)
    prior: dict[str, Any] | None = None
    if kind == "cat":
        prior = {"name": "cat"}
    elif kind == "map":
        channels = len(state["pre_seg.weight"]) if "pre_seg.weight" in state else state["intro.weight"].shape[1] - 3
        # Which of the two it is matters only to who trains it further.
        prior = {
            "name": "released-map",
            "channels": channels,
            "dropout": MASK_DROPOUT,
            "multiple": 1 << len(arguments["enc_blk_nums"]),
        }

    found = _Recognised(_describe(_PUBLISHED[kind], arguments, prior), arguments, prior, {})
    _compare(_shapes(state), _published_shapes(_expected(found, len(state))))
    for name, tensor in state.items():
        found.state[f"prior.{name}" if name.startswith("pre_seg") else f"network.{name}"] = tensor
    if prior is not None:
        intro = found.state["network.intro.weight"]
        found.state["network.intro.weight"], found.state["prior_conv.weight"] = intro[:, :3], intro[:, 3:]
    return found


def _published_kind(state: dict[str, Tensor]) -> str | None:
    """Which of `_PUBLISHED` a state dict comes nearest to; None if it is no NAFNet at all."""
    if "intro.weight" not in state and not ("ending.weight" in state and "downs.0.weight" in state):
        return None
    intro = state.get("intro.weight")
    channels = intro.shape[1] if intro is not None and intro.ndim == 4 else 3
    if channels > 4 or any(name.startswith("pre_seg") for name in state):
        return "map"
    return "cat" if channels == 4 else "none"


def _published_shapes(expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a public file, from those of a Deblurrer."""
    shapes = {name.removeprefix("network.").removeprefix("prior."): shape for name, shape in expected.items()}
    if extra := shapes.pop("prior_conv.weight", None):
        width, channels, *kernel = shapes["intro.weight"]
        shapes["intro.weight"] = (width, channels + extra[1], *kernel)
    return shapes


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _compare(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError naming what is missing, what is there beside, and what has another shape."""
    parts = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    if differences := [f"{title}: {_some(names)}" for title, names in parts.items() if names]:
        raise ValueError("; ".join(differences))


def _some(names: Sequence[str], most: int = 2) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _describe(what: str, arguments: dict[str, Any], prior: dict[str, Any] | None) -> str:
    names = ("width", "enc_blk_nums", "middle_blk_num", "dec_blk_nums")
    settings = ", ".join(f"{name} {arguments[name]}" for name in names)
    return f"{what}: NAFNet ({settings}); prior {_prior_name(prior)}"


def _prior_name(prior: dict[str, Any] | None) -> str:
    if prior is None:
        return "none"
    settings = ", ".join(f"{name} {value}" for name, value in prior.items() if name != "name")
    return f"{prior['name']} ({settings})" if settings else str(prior["name"])


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
    for name, tensor in state.items():
        if (problem := _no_weights(tensor)) is not None:
            raise CheckpointError(f"{path}: {name[:80]!r} {problem}; save the weights as plain dense tensors")
    return state, None


def _no_weights(tensor: Tensor) -> str | None:
    """Why a tensor cannot be weights: its numbers are not there one by one, whatever it says of its size."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else "without data" if tensor.is_meta else "sparse"
        return f"is {kind}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} numbers and holds fewer"
    return None


@contextmanager
def _explained(path: Path, state: dict[str, Tensor], expected: str) -> Iterator[None]:
    """Weights that do not fit the network they seem to be of raise all kinds of errors; here they become one."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, AssertionError, RuntimeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        detail = " ".join(detail.split())
        raise CheckpointError(f"{path}: not a {expected} checkpoint, {_guess(state)} ({detail[:200]})") from error


def _guess(state: dict[str, Tensor]) -> str:
    if kind := _published_kind(state):
        return f"it looks like {_PUBLISHED[kind].partition(',')[0]}"
    for key, meaning in _KNOWN_KEYS.items():
        if key in state:
            return f"it looks like {meaning}"
    return f"its first key is {next(iter(state), 'missing')!r}"

"""Reading and writing weights: networks of this package, public NAFNet and SAM-Deblur checkpoints, Segment Anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor, nn

from samdeblur.models.checkpoints.contents import CheckpointError, read_contents
from samdeblur.models.checkpoints.finding import (
    FoundState,
    Prefixes,
    find_state,
    largest_state,
    prefixes_before,
    require_numbers,
)
from samdeblur.models.checkpoints.others import network_of, prefixes_of_others
from samdeblur.models.checkpoints.public import BUNDLED_NETWORK, BUNDLED_SAM, no_such_checkpoint
from samdeblur.models.networks.nafnet import infer_config
from samdeblur.models.networks.named import OWN, NetworkError, build_network, name_of, rebuild_network
from samdeblur.models.networks.sam import METADATA_KEY, Calibration, SamConfig, build_sam, build_small_sam
from samdeblur.models.priors.attach import Deblurrer, with_prior
from samdeblur.models.priors.methods import MASK_DROPOUT, build_prior
from samdeblur.storage.files import in_utf8, sha256_file

Model = TypeVar("Model")

BEST_WEIGHTS, LAST_WEIGHTS = "best.safetensors", "last.safetensors"  # in the folder of a training run

# What networks with the keys of a public NAFNet are, by the prior they bring.
_PUBLISHED = {
    "none": "a public NAFNet, or the released SAM-Deblur network without masks, whose keys are the same",
    "cat": "the released SAM-Deblur network with CAT",
    "map": "the released SAM-Deblur network with MAP, trained with or without mask dropout, which keys do not tell",
}

# A key that gives away whose checkpoint a file is, for the message that refuses it.
_KNOWN_KEYS = {
    "prior_conv.weight": "a network of samdeblur without its configuration; take the .safetensors file of its run",
    "image_encoder.trunk.patch_embed.proj.weight": "a Segment Anything 2 model",
    "mask_decoder.hf_token.weight": "a Segment Anything model in high quality (HQ)",
    "image_encoder.layers.0.blocks.0.conv1.c.weight": "a MobileSAM",
    "image_encoder.layers.0.blocks.0.attn.qkv.weight": "a MobileSAM",
    "vision_encoder.patch_embed.projection.weight": "a Segment Anything model of transformers",
    "image_encoder.patch_embed.proj.weight": "a Segment Anything model; pass it to --sam",
    "patch_embed.proj.weight": "a Restormer",
    "encoder_level1.0.norm1.body.weight": "a Restormer",
    "conv_first.weight": "a SwinIR, ESRGAN or similar network",
    "Encoder.0.layers.0.main.0.main.0.weight": "a MIMO-UNet",
}


_SAM: Prefixes = prefixes_before(r"(?:image_encoder|prompt_encoder|mask_decoder)\.")
_INTRO: Prefixes = prefixes_before(r"(?:intro|ending)\.weight$")


def _nafnet(state: Mapping[str, Any]) -> list[str]:
    """Prefixes of NAFNets; of one in a Deblurrer with a prior, that of the Deblurrer, so that it is not torn apart."""
    whole = [(prefix, prefix.removesuffix("network.")) for prefix in _INTRO(state)]
    return [outer if f"{outer}prior_conv.weight" in state else prefix for prefix, outer in whole]


def encode_network(network: Deblurrer) -> bytes:
    """A network with its configuration as the bytes of a safetensors file, which `load_network` reads.

    Raises ValueError for a network that was not built by name, so that nobody could build it again.
    """
    name = name_of(network.network)
    if name is None:
        raise ValueError(
            f"only networks built by name can be saved with their configuration, not {type(network.network).__name__}"
        )
    config = {
        "network": {"name": name, **network.network.config},  # type: ignore[dict-item]
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
    from the file; wrappers and prefixes are taken off, and `FILE#params_ema` names one of several networks in it, see
    `finding`. See `Deblurrer` for how to call it; its attribute `recognised` is what `describe_checkpoint` says.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of another network.
    """
    path, found, config = _read_network(path)
    with _misfits_explained(path, found, "deblurring"):
        known = _recognise(found, config)
        network = with_prior(_build_network(known.network), build_prior(known.prior))
        _compare(_shapes(known.state), _shapes(network.state_dict()))
        network.load_state_dict(known.state)
    network.recognised, network.train_size, network.provenance = known.what, known.train_size, known.training
    network.local_means = known.local_means
    return network.eval()


def training_of(path: Path) -> dict[str, Any] | None:
    """Of which step of a run weights are, as `Deblurrer.provenance`, from the head of the file; None if it is silent.

    Raises CheckpointError.
    """
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            found = json.loads(metadata).get("training") if metadata else None
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint; safetensors cannot read it") from error
    return found if isinstance(found, dict) else None


def describe_checkpoint(path: str | Path) -> str:
    """What `load_network` takes a file for, in words. Raises as it does."""
    path, found, config = _read_network(path)
    with _misfits_explained(path, found, "deblurring"):
        return _recognise(found, config).what


def load_sam(path: str | Path, calibrated: bool = True) -> Sam:
    """A segment_anything Sam in evaluation mode; its architecture is inferred from the checkpoint.

    "bundled" is the small Sam this package carries; `BUNDLED_SETTINGS` of samdeblur.pipeline suit it.

    Args:
        calibrated: False gives a model of this package as its training left it, to train it on.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or not of a Segment Anything model.
    """
    path = resolve_checkpoint(Path(path), BUNDLED_SAM)

    def build(state: dict[str, Tensor], config: dict[str, Any] | None) -> Sam:
        sam = build_small_sam(SamConfig(**config["sam"])) if config is not None else build_sam(state)
        for name in ("pixel_mean", "pixel_std"):  # in files of those who save all buffers
            if name in state:
                getattr(sam, name).copy_(state.pop(name).reshape(3, 1, 1))
        sam.load_state_dict(state)
        if config is not None and not calibrated:
            Calibration(**config.get("calibration", {})).inverse.apply(sam)
        return sam.eval()

    return build_sam_from(path, build)


def build_sam_from(
    path: Path, build: Callable[[dict[str, Tensor], dict[str, Any] | None], Model], expected: str = "Segment Anything"
) -> Model:
    """What a function makes of the weights in a file of some Segment Anything, and of the configuration this package
    wrote beside them. Raises CheckpointError for whatever goes wrong in it.
    """
    found, config = _read_weights(path, _SAM)
    with _misfits_explained(path, found, expected):
        return build(found.state, config)


def split_part(path: Path) -> tuple[Path, str]:
    """A file and the part of it that is meant: `FILE#params_ema`; a file of just that name is itself."""
    name, mark, part = path.name.rpartition("#")
    return (path.with_name(name), part) if mark and name and not path.exists() else (path, "")


def checkpoint_digest(path: Path) -> str:
    """What weights are recognised by: the SHA-256 (hex) of their file, and the part of it where one is named."""
    file, part = split_part(path)
    return sha256_file(file).hex() + (f"#{part}" if part else "")


def resolve_checkpoint(path: Path, bundled: Path) -> Path:
    """The file a path stands for: itself, the best weights of a training run's folder, or `bundled` for that word
    (give the full path of a file of that name). A part that is named, `FILE#params_ema`, stays.

    Raises FileNotFoundError, and CheckpointError for a run that has no best weights yet.
    """
    if str(path) == "bundled":
        return bundled
    if split_part(path)[1]:
        if not split_part(path)[0].is_file():
            raise no_such_checkpoint(split_part(path)[0])
        return path
    if path.is_dir():
        if not (path / BEST_WEIGHTS).exists() and (path / LAST_WEIGHTS).exists():
            raise CheckpointError(
                f"{path}: no {BEST_WEIGHTS} yet, as nothing was validated after step 0; go on training, or name "
                f"{path / LAST_WEIGHTS}"
            )
        path = path / BEST_WEIGHTS
    if not path.is_file():
        raise no_such_checkpoint(path)
    return path


@dataclass(frozen=True)
class _Recognised:
    """A network found in a file."""

    what: str  # for people
    network: dict[str, Any]  # its name, and what it is built with
    prior: dict[str, Any] | None  # as `build_prior` takes it
    state: dict[str, Tensor]  # under the names of a Deblurrer
    train_size: int | None = None
    training: dict[str, Any] | None = None
    local_means: bool = False


def _build_network(config: dict[str, Any]) -> nn.Module:
    """A network of its name and what it is built with. Raises NetworkError."""
    arguments = {key: value for key, value in config.items() if key != "name"}
    if (own := OWN.get(config["name"])) is not None:
        return own(**arguments)
    if "multiple" not in arguments:  # a public one, whose sizes have yet to be found
        return build_network(config["name"], arguments["options"], asked=False)
    return rebuild_network(config["name"], **arguments)


def _expected(found: _Recognised, n_tensors: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the Deblurrer with a network of `OWN`, without memory for its weights."""
    sizes = found.network
    if sizes["name"] == "unet":
        blocks = (2 * sizes["levels"] + 1) * sizes["blocks"]
    else:
        blocks = sum([*sizes["enc_blk_nums"], sizes["middle_blk_num"], *sizes["dec_blk_nums"]])
    if blocks > n_tensors:
        raise ValueError(f"{blocks} blocks in {n_tensors} tensors")
    with torch.device("meta"):
        network, prior = _build_network(found.network), build_prior(found.prior)
    shapes = {f"network.{name}": shape for name, shape in _shapes(network.state_dict()).items()}
    if prior is not None:
        shapes |= {f"prior.{name}": shape for name, shape in _shapes(prior.state_dict()).items()}
        first = "first" if sizes["name"] == "unet" else "intro"
        width, _, *kernel = shapes[f"network.{first}.weight"]
        shapes["prior_conv.weight"] = (width, prior.channels, *kernel)
    return shapes


def _read_network(path: str | Path) -> tuple[Path, FoundState, dict[str, Any] | None]:
    """Read a file: its name, the weights in it, and the configuration of this package. Raises as `load_network`."""
    path = resolve_checkpoint(Path(path), BUNDLED_NETWORK)
    return path, *_read_weights(path, _nafnet, prefixes_of_others)


def _recognise(found: FoundState, config: dict[str, Any] | None) -> _Recognised:
    """See what weights are of, and of our own and public NAFNets check that every name and shape is there."""
    if config is not None:
        return _recognise_own(found.state, config)
    if _published_kind(found.state) is None and (other := network_of(found.state)) is not None:
        name, options = other
        state = {f"network.network.{key}": value for key, value in found.state.items()}
        return _Recognised(f"a public {name}; prior none", {"name": name, "options": options}, None, state)
    return _recognise_public(found.state)


def _recognise_own(state: dict[str, Tensor], config: dict[str, Any]) -> _Recognised:
    what, size = _describe("a network of samdeblur", config["network"], config["prior"]), config.get("train_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"train_size {size!r} is not a number of pixels")
    training, local = config.get("training"), config.get("local_means", False)
    if training is not None and not isinstance(training, dict):
        raise ValueError(f"training {training!r} is not a mapping")
    if local and size is None:
        raise ValueError("local_means without train_size")
    found = _Recognised(what, dict(config["network"]), config["prior"], state, size, training, bool(local))
    if found.network["name"] in OWN:
        _compare(_shapes(state), _expected(found, len(state)))
    return found


def _recognise_public(state: dict[str, Tensor]) -> _Recognised:
    """A public NAFNet, or one whose first convolution was widened by the channels of a prior."""
    kind = _published_kind(state)
    if kind is None:
        raise ValueError("no intro.weight")
    ending = {"intro.weight": state["ending.weight"].transpose(0, 1)} if "intro.weight" not in state else {}
    arguments: dict[str, Any] = {"name": "nafnet", **infer_config(state | ending)}
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
    if differences := [f"{title}: {_first_names(names)}" for title, names in parts.items() if names]:
        raise ValueError("; ".join(differences))


def _first_names(names: Sequence[str], most: int = 2) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _describe(what: str, network: dict[str, Any], prior: dict[str, Any] | None) -> str:
    name = network["name"]
    kind = OWN[name].__name__ if name in OWN else name
    options = network.get("options", network)
    order = list(signature(OWN[name]).parameters) if name in OWN else sorted(options)
    settings = ", ".join(f"{key} {options[key]}" for key in order if key in options)
    return f"{what}: {kind} ({settings}); prior {_prior_name(prior)}"


def _prior_name(prior: dict[str, Any] | None) -> str:
    if prior is None:
        return "none"
    settings = ", ".join(f"{name} {value}" for name, value in prior.items() if name != "name")
    return f"{prior['name']} ({settings})" if settings else str(prior["name"])


def _read_weights(path: Path, *kinds: Prefixes) -> tuple[FoundState, dict[str, Any] | None]:
    """The tensors of a file, and the configuration this package wrote beside them. Raises CheckpointError."""
    path, part = split_part(path)
    contents, config = read_contents(path)
    if config is not None and part:
        raise CheckpointError(f"{path}: no part {part!r}; it holds one network, of samdeblur")
    found = FoundState(contents) if config is not None else _find(contents, path, part, kinds)
    require_numbers(found.state, path)
    return found, config


def _find(contents: Any, path: Path, part: str, kinds: Sequence[Prefixes]) -> FoundState:
    for prefixes in kinds:
        if (found := find_state(contents, prefixes, path, part)) is not None:
            return found
    return largest_state(contents, path, part)


@contextmanager
def _misfits_explained(path: Path, found: FoundState, expected: str) -> Iterator[None]:
    """Weights that do not fit the network they seem to be of raise all kinds of errors; here they become one."""
    try:
        yield
    except NetworkError as error:  # the file is whole, and names a network that is not there or not trusted
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, AssertionError, RuntimeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        detail = " ".join(detail.split())
        place = f", found at {found.part}" if found.part else ""
        guess = _guess(found.state).removesuffix("; pass it to --sam" if expected == "Segment Anything" else "")
        raise CheckpointError(f"{path}: not a {expected} checkpoint, {guess} ({detail[:200]}){place}") from error


def _guess(state: dict[str, Tensor]) -> str:
    if kind := _published_kind(state):
        return f"it looks like {_PUBLISHED[kind].partition(',')[0]}"
    for key, meaning in _KNOWN_KEYS.items():
        if any(name == key or name.endswith(f".{key}") for name in state):
            return f"it looks like {meaning}"
    return f"its first key is {next(iter(state), 'missing')!r}"

"""Settings of a training run: typed, from YAML and the command line, unknown names refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from samdeblur.models import METHODS, SEMANTICS
from samdeblur.models.priors.pooling import Aggregate, Statistics
from samdeblur.storage.files import decode_text
from samdeblur.train.losses import LOSSES
from samdeblur.train.plain_yaml import plain_yaml

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A setting that does not exist or has a value it cannot have."""


# Lowest value, and what it must stay below.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("width", "steps", "batch_size", "crop_size", "val_every", "log_every"), (1, math.inf)),
    **dict.fromkeys(("prior_channels", "middle_blk_num", "accumulate", "crops_per_image", "save_every"), (1, math.inf)),
    **dict.fromkeys(("enc_blk_nums", "dec_blk_nums", "freeze_backbone", "subimage_size"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "min_learning_rate", "weight_decay", "grad_clip"), (0, math.inf)),
    **dict.fromkeys(("keep_every", "val_images", "cache_mb"), (0, math.inf)),
    **dict.fromkeys(("betas", "mask_dropout", "val_share", "ema"), (0, 1)),
    "loader_workers": (-1, math.inf),
    "seed": (0, 1 << 63),
}

# What a setting is one of.
_CHOICES: dict[str, Sequence[str]] = {
    "method": METHODS,
    "semantics": SEMANTICS,
    "aggregate": get_args(Aggregate),
    "statistics": get_args(Statistics),
    "loss": tuple(LOSSES),
    "precision": ("float32", "tf32", "bfloat16", "float16", "float64"),
    "device": ("auto", "cpu", "cuda"),
}

ARCHITECTURE = ("width", "enc_blk_nums", "middle_blk_num", "dec_blk_nums")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Defaults are the preset `paper`; see docs/training.md and the files in `presets/`."""

    # what is trained
    method: str = "none"  # row of the paper's Table 1
    semantics: str = "paper"  # of map and map-dropout; "released": as the released code computes them
    prior_channels: int = 2  # S
    mask_dropout: float = 0.5  # of map-dropout; share of the masks of a crop
    aggregate: Aggregate = "sum"  # what a pixel under several masks gets
    statistics: Statistics = "mean"  # what is taken of the pixels of a mask
    width: int = 32
    enc_blk_nums: tuple[int, ...] = (1, 1, 1, 28)
    middle_blk_num: int = 1
    dec_blk_nums: tuple[int, ...] = (1, 1, 1, 1)
    weights: str = ""  # checkpoint to begin with, whose architecture is taken; "" begins with random weights
    freeze_backbone: int = 0  # first steps in which the prior alone is trained
    # crops
    batch_size: int = 32  # of all processes together
    crop_size: int = 256  # pixels
    subimage_size: int = 0  # crops are drawn from tiles of this side, half a side apart; 0: from whole images
    crops_per_image: int = 1  # samples in a row that are of one image
    misrotated_masks: bool = False  # the mistake of the released code: images are transposed, masks rotated
    # optimisation
    steps: int = 200_000
    loss: str = "psnr"
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-6  # end of the cosine
    betas: tuple[float, ...] = (0.9, 0.9)
    weight_decay: float = 1e-3
    grad_clip: float = 0.01  # largest norm; 0 turns clipping off
    ema: float = 0.0  # decay of the average of the weights that is validated and saved; 0: the weights themselves
    accumulate: int = 1  # parts a process takes its share of a batch in, to save memory
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    # the run
    seed: int = 0
    val_every: int = 5000  # steps
    val_share: float = 0.1  # of the training images held out when no validation store is given
    val_images: int = 0  # at most so many, evenly spaced; 0: all
    log_every: int = 100
    save_every: int = 1000  # steps; also saved at each validation, and when the run is stopped
    keep_every: int = 0  # steps; weights that are not written over, step-N.safetensors; 0: none
    tensorboard: bool = False
    loader_workers: int = -1  # processes that read crops; -1: the cores of a GPU, at most 16; none on a CPU
    cache_mb: int = 0  # memory for decoded pictures, of each process of the run
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                near = difflib.get_close_matches(getattr(self, name), choices, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
                raise ConfigError(f"{name}: no {getattr(self, name)!r}; {hint}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not all(low <= item < high for item in (value if isinstance(value, tuple) else [value])):
                limit = f"at least {low}" if high == math.inf else f"in [{low}, {high})"
                raise ConfigError(f"{name}: must be {limit}, is {value}")
        if len(self.enc_blk_nums) != len(self.dec_blk_nums):
            raise ConfigError("enc_blk_nums and dec_blk_nums must have as many levels")
        if len(self.betas) != 2:
            raise ConfigError(f"betas: two numbers, got {len(self.betas)}")
        if self.subimage_size and self.subimage_size < self.crop_size:
            raise ConfigError(f"subimage_size: {self.subimage_size} is smaller than the crops, {self.crop_size}")
        if self.semantics == "released" and (self.aggregate, self.statistics) != ("sum", "mean"):
            raise ConfigError("aggregate and statistics: semantics released has none but sum and mean")
        if self.freeze_backbone and self.method == "none":
            raise ConfigError("freeze_backbone: method none has no prior to train alone")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From plain values. Raises ConfigError for unknown names, with the nearest known one, and wrong types."""
        known = {field.name: field.default for field in fields(cls)}
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{unknown[0]}: no such setting; {hint}")
        return cls(**{name: _convert(name, value, known[name]) for name, value in values.items()})

    def to_yaml(self) -> str:
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)


def read_config(location: str) -> dict[str, Any]:
    """Values of a YAML file, or of a preset by its name; `base: NAME` in it names another (a file
    beside it, or a preset) that it changes.

    Raises FileNotFoundError, ConfigError.
    """
    values, seen = _read_yaml(location), [location]
    while "base" in values:
        base = str(values.pop("base"))
        if not _preset(base).exists():
            base = str(Path(seen[-1]).parent / base)
        if base in seen:
            raise ConfigError(f"{location}: base {base} leads back to itself")
        seen.append(base)
        values = _read_yaml(base) | values
    return values


def _preset(name: str) -> Path:
    return PRESETS / f"{name}.yaml"


def _read_yaml(location: str) -> dict[str, Any]:
    path = _preset(location) if _preset(location).exists() else Path(location)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"{location}: no such configuration file, nor a preset ({names})")
    try:
        values = plain_yaml(decode_text(path.read_bytes())) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of names to values")
    return values


def parse_assignment(text: str) -> tuple[str, Any]:
    """`name=value` with a YAML value. Raises ConfigError."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r}: write name=value")
    try:
        return name, plain_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: {value!r} is not a YAML value") from error


def _convert(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of the default; integers pass for floats, and so does 1e-3, which YAML reads as text."""
    kind = type(default)
    if kind is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(_convert(name, item, default[0]) for item in items)
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    if type(value) is not kind:
        raise ConfigError(f"{name}: {value!r} is not {'a number' if kind is float else f'of type {kind.__name__}'}")
    return value

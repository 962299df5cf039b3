"""Settings of a training run: typed, from YAML and the command line, unknown names refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from samdeblur.models import METHODS, SEMANTICS

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A setting that does not exist or has a value it cannot have."""


# Lowest value, and what it must stay below.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("width", "steps", "batch_size", "crop_size", "val_every", "log_every"), (1, math.inf)),
    **dict.fromkeys(("prior_channels", "middle_blk_num"), (1, math.inf)),
    **dict.fromkeys(("enc_blk_nums", "dec_blk_nums", "seed", "loader_workers"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "min_learning_rate", "weight_decay", "grad_clip"), (0, math.inf)),
    **dict.fromkeys(("betas", "mask_dropout", "val_share"), (0, 1)),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Defaults are the preset `paper`; see the files in `presets/`."""

    method: str = "none"
    # network
    width: int = 32
    enc_blk_nums: tuple[int, ...] = (1, 1, 1, 28)
    middle_blk_num: int = 1
    dec_blk_nums: tuple[int, ...] = (1, 1, 1, 1)
    prior_channels: int = 2  # S
    mask_dropout: float = 0.5  # of map-dropout; share of the masks of a crop
    semantics: str = "paper"  # of map and map-dropout; "released": as the released code computes them
    # optimisation
    steps: int = 200_000
    batch_size: int = 32
    crop_size: int = 256  # pixels
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-6  # end of the cosine
    betas: tuple[float, ...] = (0.9, 0.9)
    weight_decay: float = 1e-3
    grad_clip: float = 0.01  # largest norm; 0 turns clipping off
    # the run
    seed: int = 0
    val_every: int = 5000  # steps; state is saved as often
    val_share: float = 0.1  # of the training images held out when no validation store is given
    log_every: int = 100
    loader_workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method: {self.method!r} is none of {', '.join(METHODS)}")
        if self.semantics not in SEMANTICS:
            raise ConfigError(f"semantics: {self.semantics!r} is none of {', '.join(SEMANTICS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: {self.device!r} is none of auto, cpu, cuda")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not all(low <= item < high for item in (value if isinstance(value, tuple) else [value])):
                limit = f"at least {low}" if high == math.inf else f"in [{low}, {high})"
                raise ConfigError(f"{name}: must be {limit}, is {value}")
        if len(self.enc_blk_nums) != len(self.dec_blk_nums):
            raise ConfigError("enc_blk_nums and dec_blk_nums must have as many levels")
        if len(self.betas) != 2:
            raise ConfigError(f"betas: two numbers, got {len(self.betas)}")

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
    """Values of a YAML file, or of a preset by its name. Raises FileNotFoundError, ConfigError."""
    preset = PRESETS / f"{location}.yaml"
    path = preset if preset.exists() else Path(location)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"{location}: no such configuration file, nor a preset ({names})")
    try:
        values = yaml.safe_load(path.read_text()) or {}
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
        return name, yaml.safe_load(value)
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

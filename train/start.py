"""What a run starts from: its network, and the facts that are written down about it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from samdeblur.evaluation.metrics.psnr_ssim import SMALLEST
from samdeblur.models import Deblurrer, NAFNet, Prior, device_facts, load_network, prior_for, with_prior
from samdeblur.models.checkpoints.loading import BUNDLED_NETWORK, checkpoint_digest, resolve_checkpoint
from samdeblur.models.networks import named
from samdeblur.storage import MaskStore, StoreError
from samdeblur.storage.format.layout import mask_kind
from samdeblur.storage.plurals import counted
from samdeblur.train.config import ARCHITECTURE, ConfigError, TrainConfig


@dataclass(frozen=True)
class Validation:
    """Images to validate on; none that SSIM has no window for."""

    store: MaskStore
    keys: Sequence[str]


def build_network(config: TrainConfig) -> Deblurrer:
    """The network of a run with its initial weights: those of a checkpoint, or drawn by the seed.

    Of a checkpoint the architecture counts, not that of `config`. One without a prior gets that of the method so that
    its output stays as it is; one with a prior keeps it.

    Raises:
        ConfigError: the checkpoint has another prior than the method.
        FileNotFoundError, CheckpointError: no checkpoint.
    """
    network = _initial_network(config)
    network.train_size = config.crop_size  # of the end, where phases have others
    return network


def _initial_network(config: TrainConfig) -> Deblurrer:
    torch.manual_seed(config.seed)
    if not config.weights:
        network = _named(config)
        return _attached(network, _prior(config, network), "default")
    found = load_network(config.weights).train()
    prior = _prior(config, found.network)
    if found.prior is None:
        return _attached(found.network, prior, "zero")
    if prior is None or _kind(prior.config) != _kind(found.prior.config):
        raise ConfigError(
            f"weights: {config.weights} has another prior than method {config.method} with semantics "
            f"{config.semantics}: it is {found.recognised}. Change method and semantics, or begin with a network that "
            "has no prior"
        )
    prior.load_state_dict(found.prior.state_dict())
    found.prior = prior  # as it was, with the dropout of this run
    return found


def _named(config: TrainConfig) -> nn.Module:
    """The network a run names. Raises ConfigError."""
    options = {name: getattr(config, name) for name in ARCHITECTURE} if config.network == "nafnet" else {}
    try:
        return named.build_network(config.network, options or config.network_options)
    except named.NetworkError as error:
        raise ConfigError(f"network: {error}") from error


def _attached(network: nn.Module, prior: Prior | None, init: Literal["zero", "default"]) -> Deblurrer:
    try:
        return with_prior(network, prior, init)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from error


def _prior(config: TrainConfig, network: nn.Module) -> Prior | None:
    return prior_for(
        config.method,
        config.prior_channels,
        config.mask_dropout,
        config.semantics,
        int(getattr(network, "multiple", 1)),
        config.aggregate,
        config.statistics,
    )


def _kind(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "dropout"}


def resolved(config: TrainConfig, network: Deblurrer) -> TrainConfig:
    """The settings with the architecture a network really has."""
    name = named.name_of(network.network) or config.network
    if isinstance(network.network, NAFNet):
        own = {setting: _plain(network.network.config[setting]) for setting in ARCHITECTURE}
        return replace(config, network=name, network_options={}, **own)
    built: dict[str, Any] = network.network.config  # type: ignore[assignment]
    return replace(config, network=name, network_options=dict(built.get("options", built)))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def split_images(store: MaskStore, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Keys to train on and keys held out for validation, at least one each.

    Raises StoreError when the store has fewer than two images that are ready.
    """
    keys = _ready_keys(store)
    if len(keys) < 2:
        raise StoreError(
            f"{store.path}: {counted(len(keys), 'image')} ready; holding one out for validation needs two (--val)"
        )
    if not (fit := set(large_enough(store, keys))):
        raise StoreError(f"{store.path}: no image has the {SMALLEST} pixels that validation needs")
    order = np.random.default_rng(seed).permutation(len(keys))
    n_val = min(len(keys) - 1, max(1, len(fit) - 1), max(1, round(share * len(keys))))
    chosen = [i for i in order if keys[i] in fit][:n_val]
    held_out = set(chosen)
    return [key for i, key in enumerate(keys) if i not in held_out], [keys[i] for i in sorted(chosen)]


def large_enough(store: MaskStore, keys: Sequence[str]) -> list[str]:
    """Those of the images that a window of SSIM fits into."""
    return [key for key in keys if min(store.shape(key)) >= SMALLEST]


def choose_images(
    config: TrainConfig, store: MaskStore, validation: MaskStore | None
) -> tuple[Sequence[str], Validation]:
    """Keys to train on, and the images to validate on. Raises StoreError when there are none."""
    for used in (store, validation or store):
        used.require_images()
    if validation is not None:
        keys, val = _ready_keys(store), Validation(validation, large_enough(validation, _ready_keys(validation)))
        if not val.keys:
            small = f", as all are smaller than {SMALLEST} pixels" if validation.ready_keys else ""
            raise StoreError(f"{validation.path}: no image is ready to validate on{small}")
    else:
        keys, held_out = split_images(store, config.val_share, config.seed)
        val = Validation(store, held_out)
    if 0 < config.val_images < len(val.keys):
        places = np.linspace(0, len(val.keys) - 1, config.val_images).round().astype(int)
        val = Validation(val.store, [val.keys[place] for place in places])
    return keys, val


def _ready_keys(store: MaskStore) -> list[str]:
    """Raises StoreError for a store in which nothing can be used, with the reason of the first image."""
    keys = store.ready_keys
    if not keys and len(store) and (reason := store.error(store.keys[0])):
        raise StoreError(f"{store.path}: all images are quarantined or pending; {store.keys[0]}: {reason}")
    return keys


@dataclass(frozen=True)
class Mixed:
    """A store that is trained on beside the first, and the share of the samples of each."""

    store: MaskStore
    share: float

    @property
    def keys(self) -> Sequence[str]:
        self.store.require_images()
        return _ready_keys(self.store)


def run_facts(
    config: TrainConfig,
    store: MaskStore,
    keys: Sequence[str],
    val: Validation,
    device: torch.device,
    mixed: Sequence[Mixed] = (),
    share: float = 1.0,
) -> dict[str, Any]:
    """What a run depends on beside its settings; of stores mixed in, and the share of the first, too."""

    def describe(used: MaskStore, images: Sequence[str]) -> dict[str, Any]:
        return {
            "dataset": used.header.dataset,
            "split": used.header.split,
            "seal": used.header.seal,
            "recipe": used.header.fingerprint,
            "segmenter": mask_kind(used.header.recipe),
            "made_by": dict(used.header.recipe),
            "content_sha256": used.sources_digest(images),
            "images_known_by": used.images_known_by(images),
        }

    def trained_on(used: MaskStore, images: Sequence[str]) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(images).encode()).hexdigest()
        return {**describe(used, images), "images": len(images), "images_sha256": digest}

    path = resolve_checkpoint(Path(config.weights), BUNDLED_NETWORK) if config.weights else None
    return {
        "train": {
            **trained_on(store, keys),
            "share": share if mixed else 1.0,
            "mixed_with": [{**trained_on(other.store, other.keys), "share": other.share} for other in mixed],
        },
        "validation": {**describe(val.store, val.keys), "images": list(val.keys)},
        "weights": checkpoint_digest(path) if path else None,
        "versions": {name: metadata.version(name) for name in ("samdeblur", "torch", "numpy")} | device_facts(device),
        "code": code_state(Path(__file__).parent),
    }


def code_state(folder: Path) -> str | None:
    """The git commit of the package's code, with "-dirty" where files were changed; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", "loop.py"], capture_output=True)
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 and tracked.returncode == 0 else None

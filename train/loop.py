"""The training loop."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samdeblur.models import Deblurrer, NAFNet, NotFinite, pick_device, prior_for, with_prior
from samdeblur.storage import MaskStore, StoreError
from samdeblur.train.config import TrainConfig
from samdeblur.train.crops import CropDataset, crop_loader
from samdeblur.train.evaluate import score_images, summarise
from samdeblur.train.state import Row, save_state, start_run


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


@dataclass(frozen=True)
class Validation:
    """Images to validate on."""

    store: MaskStore
    keys: Sequence[str]


def psnr_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Negative PSNR in dB of images in [0, 1], mean over the batch: 10 / ln 10 * log(mse + 1e-8)."""
    error = (output - sharp).square().mean(dim=(1, 2, 3))
    return 10 / math.log(10) * torch.log(error + 1e-8).mean()


def learning_rate(step: int, config: TrainConfig) -> float:
    """Cosine annealing from learning_rate to min_learning_rate over the run."""
    low, high = config.min_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * step / config.steps)) / 2


def build_network(config: TrainConfig) -> Deblurrer:
    """The network of a run with its initial weights, which follow from the seed."""
    torch.manual_seed(config.seed)
    network = NAFNet(config.width, config.enc_blk_nums, config.middle_blk_num, config.dec_blk_nums)
    prior = prior_for(config.method, config.prior_channels, config.mask_dropout, config.semantics, network.multiple)
    return with_prior(network, prior, init="default")


def split_images(store: MaskStore, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Keys to train on and keys held out for validation, at least one each.

    Raises StoreError when the store has fewer than two images that are ready.
    """
    keys = store.ready_keys
    if len(keys) < 2:
        raise StoreError(
            f"{store.path}: {len(keys)} images are ready; holding one out for validation needs two (--val)"
        )
    order = np.random.default_rng(seed).permutation(len(keys))
    n_val = min(len(keys) - 1, max(1, round(share * len(keys))))
    return [keys[i] for i in sorted(order[n_val:])], [keys[i] for i in sorted(order[:n_val])]


def train(
    config: TrainConfig,
    store: MaskStore,
    folder: Path,
    validation: MaskStore | None = None,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Train a network on the crops of a store; called again on the same folder, go on where it stopped.

    Args:
        validation: store to validate on; by default training images are held out.
        progress: called with each row of the log: step, loss, and at times learning rate and validation.

    Returns:
        The log of the whole run.

    Raises:
        StoreError, ConfigError: unusable store or settings.
        Diverged: the loss became infinite or not a number; the last state saved is from before.
    """
    for used in (store, validation or store):
        used.require_images()
    keys, held_out = (store.ready_keys, []) if validation else split_images(store, config.val_share, config.seed)
    val = Validation(validation, validation.ready_keys) if validation else Validation(store, held_out)
    if not val.keys:
        raise StoreError(f"{val.store.path}: no image is ready to validate on")
    crops = CropDataset(store, keys, config.crop_size, config.seed, with_atoms=config.method != "none")
    device = pick_device(config.device)
    network = build_network(config).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, (config.betas[0], config.betas[1]), weight_decay=config.weight_decay
    )
    state = start_run(folder, config, run_facts(store, keys, val))
    history: list[Row] = []
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    else:
        history.append({"step": 0, **validate(network, val)})
        save_state(folder, network, optimizer, history)
    progress(history[-1])

    first = int(history[-1]["step"])
    loader = crop_loader(
        crops, config.batch_size, first * config.batch_size, config.steps * config.batch_size, config.loader_workers
    )
    losses: list[Tensor] = []
    for step, batch in enumerate(loader, first + 1):
        torch.manual_seed(zlib.crc32(f"{config.seed} {step}".encode()))  # mask dropout, the same after a resume
        rate = learning_rate(step - 1, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        blurred, sharp, atoms = batch.to(device)
        loss = psnr_loss(network.train()(blurred, atoms), sharp)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip or math.inf, error_if_nonfinite=False)
        optimizer.step()
        losses.append(loss.detach())

        is_last = step == config.steps
        if step % config.log_every and step % config.val_every and not is_last:
            continue
        row: Row = {"step": step, "loss": torch.stack(losses).mean().item(), "learning_rate": rate}
        losses.clear()
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"{folder}: the loss is {row['loss']} at step {step}; lower learning_rate or grad_clip and look at "
                f"the images. State of step {first_saved(history)} is intact"
            )
        if step % config.val_every == 0 or is_last:
            row |= validate(network, val)
        history.append(row)
        progress(row)
        if "val_psnr" in row:
            save_state(folder, network, optimizer, history)
    return history


def first_saved(history: list[Row]) -> int:
    return int([row["step"] for row in history if "val_psnr" in row][-1])


def validate(network: Deblurrer, val: Validation) -> Row:
    """Mean PSNR and SSIM and the MCR on whole images."""
    try:
        scores = [score for score, _ in score_images(network.eval(), val.store, val.keys)]
    except NotFinite as error:
        raise Diverged(
            f"validation: {error}; lower learning_rate or grad_clip. The last state saved is intact"
        ) from error
    summary = summarise(scores)
    return {"val_psnr": summary["psnr"], "val_ssim": summary["ssim_wang"], "val_mcr": summary["mcr"]}


def run_facts(store: MaskStore, keys: Sequence[str], val: Validation) -> dict[str, Any]:
    """What a run depends on beside its settings."""

    def describe(used: MaskStore) -> dict[str, Any]:
        return {"dataset": used.header.dataset, "split": used.header.split, "recipe": used.header.fingerprint}

    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return {
        "train": {**describe(store), "images": len(keys), "images_sha256": digest},
        "validation": {**describe(val.store), "images": list(val.keys)},
        "versions": {name: metadata.version(name) for name in ("samdeblur", "torch", "numpy")},
    }

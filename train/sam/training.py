"""Training of a small Segment Anything model on stores of procedural worlds with their true masks.

The recipe is Segment Anything's (Kirillov et al., ICCV 2023, section 3 and appendix A): points and boxes sampled from
masks, a second round with a point where the first was wrong and the first mask as a prompt, three masks for an
ambiguous point of which the best is trained, and a head that predicts the IoU. What differs lets a CPU core train it:
every true mask that contains a point is a target, losses look at a sample of the pixels, training starts on small
windows of the image, and a dense auxiliary loss trains the encoder from the first step.
"""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from samdeblur.models import pick_device
from samdeblur.models.networks.sam import SamConfig, build_small_sam, encode_sam
from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably
from samdeblur.train.sam.affinity import Affinity
from samdeblur.train.sam.losses import Prompts, mask_loss
from samdeblur.train.sam.prompts import PromptedImage, draw

AVERAGE = 0.998  # decay of the running average of the weights, which is what is kept
SAVE_EVERY = 100
MODEL = SamConfig(stride=8, embed_dim=96, fused_depth=1, heads=3)


@dataclass(frozen=True)
class Phase:
    """Part of a training.

    Attributes:
        tokens: side of its images, of the 48 tokens the model sees when it is used.
        batch: images per step. prompts: prompts per image; 0 trains the encoder alone.
        sample: tokens at which the masks of a prompt are compared.
        lr, lr_end: learning rate, which changes evenly from one to the other.
        auxiliary: weight of the losses of the encoder alone. ranked: weight of the loss that ties outputs to sizes.
        scored: weight of the error of the predicted IoU.
        second_round: share of the steps with a correction round.
    """

    tokens: int
    steps: int
    batch: int
    prompts: int
    lr: float
    lr_end: float
    auxiliary: float
    ranked: float = 0.0
    scored: float = 1.0
    sample: int = 128
    second_round: float = 0.0


PHASES = (
    Phase(tokens=24, steps=300, batch=8, prompts=0, lr=1.5e-3, lr_end=1.5e-3, auxiliary=1.0),
    Phase(tokens=24, steps=16000, batch=6, prompts=12, lr=8e-4, lr_end=5e-4, auxiliary=0.5, ranked=0.3, scored=4.0),
    Phase(
        tokens=48,
        steps=12000,
        batch=2,
        prompts=16,
        lr=5e-4,
        lr_end=4e-6,
        auxiliary=0.1,
        ranked=0.2,
        scored=4.0,
        sample=320,
        second_round=0.1,
    ),
)


def scaled(phases: Sequence[Phase], steps: int | None, trained: bool = False) -> tuple[Phase, ...]:
    """The same schedule in so many steps; for a model that is `trained` without the phases of the encoder alone."""
    phases = [phase for phase in phases if phase.prompts or not trained] or list(phases)
    total = sum(phase.steps for phase in phases)
    ends = np.cumsum([0, *(phase.steps for phase in phases)]) * (steps or total) // total
    return tuple(replace(phase, steps=int(count)) for phase, count in zip(phases, np.diff(ends), strict=True))


def train_sam(
    stores: Sequence[MaskStore],
    folder: Path,
    config: SamConfig | None = None,
    phases: tuple[Phase, ...] = PHASES,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    device: str = "auto",
    progress: Callable[[dict[str, float]], None] = lambda row: None,
) -> Sam:
    """Train a model and write it to `folder`/sam.safetensors; goes on where an earlier call was stopped.

    Args:
        stores: images come from each of them equally often.
        weights: a state dict to begin with; what has the name and shape of a part of the model is taken.
        device: "cpu", "cuda", or "auto": a GPU where there is one.
    """
    torch.manual_seed(seed)
    config = config or MODEL
    sam = build_small_sam(config)
    model = nn.ModuleDict({"sam": sam, "auxiliary": Affinity(config.embed_dim)})
    own = sam.state_dict()
    taken = {
        name: tensor for name, tensor in (weights or {}).items() if name in own and tensor.shape == own[name].shape
    }
    sam.load_state_dict(own | taken)
    model.to(pick_device(device))
    average = copy.deepcopy(sam)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02, betas=(0.9, 0.99), fused=True)
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started = time.monotonic()
    total = sum(phase.steps for phase in phases)
    for step, phase, lr, images in _batches(stores, phases, seed, first):
        row = {"step": step + 1, "lr": lr} | _step(model, optimizer, phase, lr, images, (seed, step))
        with torch.no_grad():
            decay = min(AVERAGE, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(sam.parameters()), 1 - decay)
        row["seconds"] = time.monotonic() - started
        progress(row)
        with open(folder / "log.jsonl", "a") as log:
            log.write(json.dumps(row) + "\n")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            buffer = io.BytesIO()
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, buffer)
            write_durably(state_file, buffer.getvalue())
            write_durably(folder / "sam.safetensors", encode_sam(average, config))
    return average.cpu().eval()


def _step(
    model: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    lr: float,
    images: list[PromptedImage],
    seed: tuple[int, int],
) -> dict[str, float]:
    sam: Any = model["sam"]
    rng = np.random.default_rng((*seed, 1))
    torch.manual_seed(int(rng.integers(1 << 31)))
    pixels = torch.from_numpy(np.stack([image.image for image in images])).to(sam.device).permute(0, 3, 1, 2).float()
    embedding = sam.image_encoder((pixels - sam.pixel_mean) / sam.pixel_std)
    row: dict[str, float] = {}
    auxiliary = model["auxiliary"](embedding, images, rng)
    row["auxiliary"] = float(auxiliary.detach())
    loss = phase.auxiliary * auxiliary
    if phase.prompts:
        second_round = rng.random() < phase.second_round
        free = sam.prompt_encoder.image_embedding_size[0] - phase.tokens + 1
        offset = (int(rng.integers(free)), int(rng.integers(free)))
        prompts = Prompts.of(images, offset).to(sam.device)
        masks, reached = mask_loss(
            sam, embedding, prompts, offset, second_round, phase.sample, phase.ranked, phase.scored
        )
        row |= {"masks": float(masks.detach())} | reached
        loss = loss + masks
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return row | {"loss": float(loss.detach())}


def _batches(
    stores: Sequence[MaskStore], phases: tuple[Phase, ...], seed: int, first: int
) -> Iterator[tuple[int, Phase, float, list[PromptedImage]]]:
    """Step, phase, learning rate and images from a step on; a thread draws the next ones meanwhile."""
    plan: list[tuple[int, Phase, float]] = []
    for phase in phases:
        for place in range(phase.steps):
            lr = (phase.lr + (phase.lr_end - phase.lr) * place / phase.steps) * min(1, (place + 1) / 50)
            plan.append((len(plan), phase, lr))

    def load(step: int, phase: Phase) -> list[PromptedImage]:
        chosen = np.random.default_rng((seed, step)).integers(0, len(stores), phase.batch)
        return [
            draw(stores[store], phase.tokens, phase.prompts, (seed, step, image)) for image, store in enumerate(chosen)
        ]

    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(load, step, phase) for step, phase, _ in plan[first : first + 2]]
        for step, phase, lr in plan[first:]:
            images = ahead.pop(0).result()
            if step + 2 < len(plan):
                ahead.append(pool.submit(load, *plan[step + 2][:2]))
            yield step, phase, lr, images

"""Training of a small Segment Anything model on a store of procedural worlds with their true masks.

The recipe is Segment Anything's (Kirillov et al., ICCV 2023, section 3 and appendix A): points and boxes sampled from
masks, a second round with a point where the first was wrong and the first mask as a prompt, three masks for an
ambiguous point of which the best is trained, focal + dice loss and a head that predicts the IoU. Three things differ, so
that two CPU cores can train it: every true mask that contains a point is a target, training starts on small windows of
the picture, and a dense auxiliary loss (do two places share a mask?) trains the encoder from the first step.

Shapes: N prompts, T targets of a prompt, K outputs of a prompt, s side of the low-resolution masks, C channels.
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models.sam import SamConfig, build_small_sam, encode_sam
from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably
from samdeblur.train.prompts import TOKEN, PromptedImage, draw

AVERAGE = 0.998  # decay of the running average of the weights, which is what is kept
SECOND_ROUND = 0.3  # share of the steps with a correction round
SAVE_EVERY = 200


@dataclass(frozen=True)
class Phase:
    """Part of a training. `tokens` is the side of its pictures, `lr` falls to `lr_end` by a cosine."""

    tokens: int
    steps: int
    batch: int
    prompts: int
    lr: float
    lr_end: float
    auxiliary: float


PHASES = (
    Phase(tokens=12, steps=300, batch=16, prompts=0, lr=1e-3, lr_end=1e-3, auxiliary=1.0),
    Phase(tokens=12, steps=2400, batch=8, prompts=20, lr=1e-3, lr_end=5e-4, auxiliary=0.5),
    Phase(tokens=24, steps=1200, batch=6, prompts=20, lr=5e-4, lr_end=5e-6, auxiliary=0.2),
)


class Affinity(nn.Module):
    """The auxiliary head: vectors on a grid of half a token, near each other where places share masks.

    Three kinds of sharing: all masks, any mask, and the share of the masks of both that they share.
    """

    def __init__(self, channels: int, vector: int = 16) -> None:
        super().__init__()
        self.vectors = nn.Sequential(nn.Conv2d(channels, 3 * vector * 4, 1), nn.PixelShuffle(2))
        self.level = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))

    def forward(self, embedding: Tensor, images: list[PromptedImage], rng: np.random.Generator) -> Tensor:
        """The loss of an embedding (B, C, h, w); places are compared in random sets."""
        vectors = self.vectors(embedding).flatten(2)
        losses = []
        for found, image in zip(vectors, images, strict=True):
            side = len(image.groups)
            top, left = rng.integers(0, side - 11, 2)
            near = ((top + rng.integers(0, 12, 192)) * side + left + rng.integers(0, 12, 192)).astype(np.int64)
            places = np.concatenate([rng.integers(0, side * side, 192), near])
            atoms = image.groups.ravel()[places]
            table = torch.from_numpy(image.table[atoms].astype(np.float32))
            shared = table @ table.T
            either = table.sum(1)[:, None] + table.sum(1)[None] - shared
            same = torch.from_numpy(atoms[:, None] == atoms[None]).float()
            truth = torch.stack([same, (shared > 0).float(), torch.where(either > 0, shared / either, same)])
            chosen = found[:, torch.from_numpy(places)].unflatten(0, (3, -1)).transpose(1, 2)
            logits = self.level[:, None, None] - torch.cdist(chosen, chosen, compute_mode="use_mm_for_euclid_dist")
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            positive = truth.mean(dim=(1, 2), keepdim=True).clamp(0.02, 0.98)
            losses.append((loss * (truth / positive + (1 - truth) / (1 - positive)) / 2).mean())
        return torch.stack(losses).mean()


def image_loss(
    sam: Sam, embedding: Tensor, image: PromptedImage, offset: tuple[int, int], second_round: bool
) -> tuple[Tensor, float]:
    """Loss of all prompts of an image, and the mean IoU of the best output with the mask a prompt was drawn from.

    Args:
        embedding: (1, C, h, w).
        offset: row and column, in tokens, at which the picture lies in the field of the prompt encoder.
    """
    encoder = sam.prompt_encoder
    shift = torch.tensor([offset[1], offset[0]], dtype=torch.float32) * TOKEN
    points = torch.from_numpy(image.points)[:, None] + shift
    boxes = torch.from_numpy(image.boxes) + shift.repeat(2)
    is_box = torch.from_numpy(image.is_box)
    labels = torch.ones(points.shape[:2])
    by_point, _ = encoder(points=(points, labels), boxes=None, masks=None)
    by_box, no_mask = encoder(points=None, boxes=boxes, masks=None)
    sparse = torch.where(is_box[:, None, None], by_box, by_point)
    height, width = embedding.shape[-2:]
    position = encoder.get_dense_pe()[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    logits, ious = sam.mask_decoder.predict_masks(embedding, position, sparse, no_mask[..., :height, :width])

    targets = torch.from_numpy(image.targets)
    valid = targets >= 0
    truth = torch.from_numpy(image.masks)[targets.clamp(min=0)].flatten(2)
    cost, overlap = compare(logits.flatten(2), truth)
    # Outputs 1 to 3 answer a point, output 0 a prompt that says more.
    answers = torch.zeros(len(is_box), 4, dtype=torch.bool)
    answers[:, 0] = is_box
    answers[:, 1:] = ~is_box[:, None]
    best = cost.masked_fill(~answers[..., None], math.inf).amin(dim=1)
    count = valid.sum().clamp(min=1)
    loss = best[valid].sum() / count
    reached = overlap.masked_fill(~valid[:, None], 0).amax(dim=2)
    used = answers & valid.any(dim=1, keepdim=True)
    loss = loss + F.mse_loss(ious[used], reached[used])
    first = overlap[:, :, 0].masked_fill(~answers, 0)
    quality = float(first.amax(dim=1)[valid[:, 0]].mean()) if valid.any() else 0.0
    if second_round and valid[:, 0].any():
        keep = valid[:, 0] & ~is_box
        if keep.any():
            loss = loss + _correction(
                sam, embedding, position, points[keep], logits[keep].detach(), first[keep], truth[keep, 0], offset
            )
    return loss, quality


def _correction(
    sam: Sam,
    embedding: Tensor,
    position: Tensor,
    points: Tensor,
    logits: Tensor,
    overlap: Tensor,
    truth: Tensor,
    offset: tuple[int, int],
) -> Tensor:
    """Loss of a second round: the first mask and a point where it was wrong are prompts too."""
    chosen = logits[torch.arange(len(logits)), overlap.argmax(dim=1)]
    side = chosen.shape[-1]
    wrong = ((chosen.flatten(1) > 0) != (truth > 0.5)).float() + 1e-6
    place = torch.multinomial(wrong, 1)[:, 0]
    label = (truth[torch.arange(len(truth)), place] > 0.5).float()
    corner = torch.tensor([offset[1], offset[0]]) * TOKEN
    added = torch.stack([place % side, place // side], dim=1) * 4.0 + 2 + corner
    both = torch.cat([points, added[:, None]], dim=1)
    labels = torch.stack([torch.ones_like(label), label], dim=1)
    sparse, dense = sam.prompt_encoder(points=(both, labels), boxes=None, masks=chosen[:, None])
    logits, ious = sam.mask_decoder.predict_masks(embedding, position, sparse, dense)
    cost, overlap = compare(logits[:, :1].flatten(2), truth[:, None])
    return cost.mean() + F.mse_loss(ious[:, :1], overlap[..., 0])


def compare(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """20 x focal + dice loss, and IoU at the thresholds 0 and 0.5, of all pairs: (N, K, p), (N, T, p) -> (N, K, T) each."""
    share = logits.sigmoid()
    other = truth.transpose(1, 2)
    if_inside, if_outside = (1 - share).square() * F.softplus(-logits), share.square() * F.softplus(logits)
    focal = ((if_inside - if_outside) @ other + if_outside.sum(dim=2, keepdim=True)) / truth.shape[2]
    sizes = share.sum(dim=2)[:, :, None] + truth.sum(dim=2)[:, None]
    dice = 1 - (2 * share @ other + 1) / (sizes + 1)
    with torch.no_grad():
        hard, hard_truth = (logits > 0).float(), (truth > 0.5).float()
        both = hard @ hard_truth.transpose(1, 2)
        either = hard.sum(dim=2)[:, :, None] + hard_truth.sum(dim=2)[:, None] - both
    return 20 * focal + dice, both / either.clamp(min=1)


def train_sam(
    store: MaskStore,
    folder: Path,
    config: SamConfig | None = None,
    phases: tuple[Phase, ...] = PHASES,
    seed: int = 0,
    progress: Callable[[dict[str, float]], None] = lambda row: None,
) -> Sam:
    """Train a model and write it to `folder`/sam.safetensors; goes on where an earlier call was stopped."""
    torch.manual_seed(seed)
    config = config or SamConfig()
    sam = build_small_sam(config)
    model = nn.ModuleDict({"sam": sam, "auxiliary": Affinity(config.embed_dim)})
    average = copy.deepcopy(sam)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02, betas=(0.9, 0.99))
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started = time.monotonic()
    total = sum(phase.steps for phase in phases)
    for step, phase, lr, images in _batches(store, phases, seed, first):
        row = {"step": step + 1, "lr": lr} | _step(model, optimizer, phase, lr, images, (seed, step))
        with torch.no_grad():
            decay = min(AVERAGE, (1 + step) / (10 + step))
            for kept, new in zip(average.parameters(), sam.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
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
    return average.eval()


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
    pixels = torch.from_numpy(np.stack([image.image for image in images])).permute(0, 3, 1, 2).float()
    embedding = sam.image_encoder((pixels - sam.pixel_mean) / sam.pixel_std)
    row: dict[str, float] = {}
    auxiliary = model["auxiliary"](embedding, images, rng)
    row["auxiliary"] = float(auxiliary.detach())
    loss = phase.auxiliary * auxiliary
    if phase.prompts:
        second_round = rng.random() < SECOND_ROUND
        free = sam.prompt_encoder.image_embedding_size[0] - phase.tokens + 1
        offset = (int(rng.integers(free)), int(rng.integers(free)))
        found = [
            image_loss(sam, embedding[index : index + 1], image, offset, second_round)
            for index, image in enumerate(images)
        ]
        masks = torch.stack([value for value, _ in found]).mean()
        row |= {"masks": float(masks.detach()), "iou": float(np.mean([quality for _, quality in found]))}
        loss = loss + masks
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return row | {"loss": float(loss.detach())}


def _batches(
    store: MaskStore, phases: tuple[Phase, ...], seed: int, first: int
) -> Iterator[tuple[int, Phase, float, list[PromptedImage]]]:
    """Step, phase, learning rate and images from a step on; a thread draws the next ones meanwhile."""
    plan = []
    for phase in phases:
        for place in range(phase.steps):
            fall = (1 + math.cos(math.pi * place / phase.steps)) / 2
            lr = (phase.lr_end + (phase.lr - phase.lr_end) * fall) * min(1, (place + 1) / 50)
            plan.append((len(plan), phase, lr))

    def load(step: int, phase: Phase) -> list[PromptedImage]:
        return [draw(store, phase.tokens, phase.prompts, (seed, step, image)) for image in range(phase.batch)]

    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(load, step, phase) for step, phase, _ in plan[first : first + 2]]
        for step, phase, lr in plan[first:]:
            images = ahead.pop(0).result()
            if step + 2 < len(plan):
                ahead.append(pool.submit(load, *plan[step + 2][:2]))
            yield step, phase, lr, images

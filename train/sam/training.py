"""Training of a small Segment Anything model on a store of procedural worlds with their true masks.

The recipe is Segment Anything's (Kirillov et al., ICCV 2023, section 3 and appendix A): points and boxes sampled from
masks, a second round with a point where the first was wrong and the first mask as a prompt, three masks for an
ambiguous point of which the best is trained, focal + dice loss and a head that predicts the IoU. Three things differ,
so that two CPU cores can train it: every true mask that contains a point is a target, training starts on small windows
of the picture, and a dense auxiliary loss (do two places share a mask?) trains the encoder from the first step.

Shapes: B images, N prompts, T targets of a prompt, K outputs of a prompt, s side of the low-resolution masks,
C channels, h w tokens.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models.networks.sam import SamConfig, build_small_sam, encode_sam
from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably
from samdeblur.train.sam.prompts import TOKEN, PromptedImage, draw

AVERAGE = 0.998  # decay of the running average of the weights, which is what is kept
SAVE_EVERY = 200


@dataclass(frozen=True)
class Phase:
    """Part of a training.

    Attributes:
        tokens: side of its pictures, of the 24 tokens the model sees when it is used.
        batch: pictures per step. prompts: prompts per picture; 0 trains the encoder alone.
        lr, lr_end: learning rate, falling by a cosine.
        auxiliary: weight of the dense loss.
        second_round: share of the steps with a correction round.
    """

    tokens: int
    steps: int
    batch: int
    prompts: int
    lr: float
    lr_end: float
    auxiliary: float
    second_round: float = 0.0


PHASES = (
    Phase(tokens=12, steps=250, batch=8, prompts=0, lr=1e-3, lr_end=1e-3, auxiliary=1.0),
    Phase(tokens=6, steps=1200, batch=16, prompts=16, lr=1.5e-3, lr_end=1e-3, auxiliary=0.5),
    Phase(tokens=12, steps=1150, batch=8, prompts=20, lr=1e-3, lr_end=7e-4, auxiliary=0.3, second_round=0.2),
    Phase(tokens=24, steps=2000, batch=4, prompts=16, lr=8e-4, lr_end=5e-6, auxiliary=0.1, second_round=0.3),
    Phase(tokens=24, steps=750, batch=4, prompts=20, lr=6e-4, lr_end=5e-6, auxiliary=0.1, second_round=0.2),
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
            span = min(side, 12)
            top, left = rng.integers(0, side - span + 1, 2)
            near = ((top + rng.integers(0, span, 128)) * side + left + rng.integers(0, span, 128)).astype(np.int64)
            places = np.concatenate([rng.integers(0, side * side, 128), near])
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


class Prompts(NamedTuple):
    """The prompts of a batch that mean something, numbered through.

    Attributes:
        points: (N, 2) and boxes: (N, 4), in pixels of the prompt encoder's field. is_box: (N,) which of them counts.
        image: (N,) the image of each. truth: (N, T, s * s) its targets. valid: (N, T) which of them there are.
    """

    points: Tensor
    boxes: Tensor
    is_box: Tensor
    image: Tensor
    truth: Tensor
    valid: Tensor

    @classmethod
    def of(cls, images: list[PromptedImage], offset: tuple[int, int]) -> Prompts:
        """`offset` is the row and column, in tokens, at which the pictures lie in the field."""
        shift = np.array([offset[1], offset[0]], np.float32) * TOKEN
        keep = [image.targets[:, 0] >= 0 for image in images]
        truth = [image.masks[image.targets[kept].clip(min=0)] for image, kept in zip(images, keep, strict=True)]

        def join(arrays: list[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays))

        return cls(
            points=join([image.points[kept] + shift for image, kept in zip(images, keep, strict=True)]),
            boxes=join([image.boxes[kept] + np.tile(shift, 2) for image, kept in zip(images, keep, strict=True)]),
            is_box=join([image.is_box[kept] for image, kept in zip(images, keep, strict=True)]),
            image=join([np.full(kept.sum(), number) for number, kept in enumerate(keep)]),
            truth=join(truth).flatten(2),
            valid=join([image.targets[kept] >= 0 for image, kept in zip(images, keep, strict=True)]),
        )


def decode(
    decoder: MaskDecoder, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """What MaskDecoder.predict_masks does, for prompts of several images at once.

    Args:
        embedding: (N, C, h, w), that of each prompt's image. position: (1, C, h, w).
        sparse: (N, tokens, C). dense: (N, C, h, w).

    Returns logits (N, K, 4h, 4w) and predicted IoU (N, K).
    """
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(len(sparse), -1, -1), sparse], dim=1)
    answers, keys = decoder.transformer(embedding + dense, position.expand(len(sparse), -1, -1, -1), tokens)
    pixels = decoder.output_upscaling(keys.transpose(1, 2).reshape(embedding.shape))
    weights = [head(answers[:, 1 + number]) for number, head in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("nkc,nchw->nkhw", torch.stack(weights, dim=1), pixels)
    return logits, decoder.iou_prediction_head(answers[:, 0])


def mask_loss(
    sam: Sam, embedding: Tensor, prompts: Prompts, offset: tuple[int, int], second_round: bool
) -> tuple[Tensor, float]:
    """Loss of all prompts of a batch, and the mean IoU of their best outputs with the masks they were drawn from.

    Args:
        embedding: (B, C, h, w).
    """
    encoder = sam.prompt_encoder
    by_point, _ = encoder(points=(prompts.points[:, None], torch.ones(len(prompts.points), 1)), boxes=None, masks=None)
    by_box, no_mask = encoder(points=None, boxes=prompts.boxes, masks=None)
    sparse = torch.where(prompts.is_box[:, None, None], by_box, by_point)
    height, width = embedding.shape[-2:]
    position = encoder.get_dense_pe()[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    per_prompt = embedding[prompts.image]
    logits, ious = decode(sam.mask_decoder, per_prompt, position, sparse, no_mask[..., :height, :width])

    cost, overlap = compare(logits.flatten(2), prompts.truth)
    # Outputs 1 to 3 answer a point, output 0 a prompt that says more.
    answers = torch.cat([prompts.is_box[:, None], ~prompts.is_box[:, None].expand(-1, 3)], dim=1)
    best = cost.masked_fill(~answers[..., None], math.inf).amin(dim=1)
    reached = overlap.masked_fill(~prompts.valid[:, None], 0).amax(dim=2)
    loss = best[prompts.valid].mean() + F.mse_loss(ious[answers], reached[answers])
    first = overlap[:, :, 0].masked_fill(~answers, 0)
    again = ~prompts.is_box
    if second_round and again.any():
        # The first mask and a point where it was wrong are prompts too.
        chosen = logits.detach()[torch.arange(len(logits)), first.argmax(dim=1)][again]
        truth = prompts.truth[again, 0]
        added, label = wrong_points(chosen, truth)
        points = torch.stack([prompts.points[again], added + torch.tensor([offset[1], offset[0]]) * TOKEN], dim=1)
        labels = torch.stack([torch.ones_like(label), label], dim=1)
        sparse, dense = encoder(points=(points, labels), boxes=None, masks=chosen[:, None])
        logits, ious = decode(sam.mask_decoder, per_prompt[again], position, sparse, dense)
        cost, overlap = compare(logits[:, :1].flatten(2), truth[:, None])
        loss = loss + cost.mean() + F.mse_loss(ious[:, :1], overlap[..., 0])
    return loss, float(first.amax(dim=1).mean())


def wrong_points(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """A random place at which each mask errs, from logits (N, s, s) and truth (N, s * s).

    Returns x y in pixels of the picture, (N, 2), and whether the place belongs to the truth, (N,) of 0 and 1.
    """
    side = logits.shape[-1]
    wrong = ((logits.flatten(1) > 0) != (truth > 0.5)).float() + 1e-6
    place = torch.multinomial(wrong, 1)[:, 0]
    label = (truth[torch.arange(len(truth)), place] > 0.5).float()
    return torch.stack([place % side, place // side], dim=1) * 4.0 + 2, label


def compare(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """20 x focal + dice loss, and IoU, of every output with every target: (N, K, p), (N, T, p) -> (N, K, T) each.

    The focal loss is linear in the target, so that all pairs are two matrix products; IoU takes a share of half a pixel
    for a whole one.
    """
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
        second_round = rng.random() < phase.second_round
        free = sam.prompt_encoder.image_embedding_size[0] - phase.tokens + 1
        offset = (int(rng.integers(free)), int(rng.integers(free)))
        masks, quality = mask_loss(sam, embedding, Prompts.of(images, offset), offset, second_round)
        row |= {"masks": float(masks.detach()), "iou": quality}
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
    plan: list[tuple[int, Phase, float]] = []
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

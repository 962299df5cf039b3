"""Losses of the masks that a Segment Anything model answers to prompts, at a sample of their pixels.

Shapes: B images, N prompts (N / B in a row belong to each image), T targets of a prompt, K outputs of a prompt,
s side of the low-resolution masks, C channels, h w tokens of 4x4 such pixels, S tokens of a sample, P = 16 S pixels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from samdeblur.train.sam.decoding import answer, in_pixels, in_tokens, masks_at
from samdeblur.train.sam.prompts import PIXEL, TOKEN, PromptedImage


class Prompts(NamedTuple):
    """The prompts of a batch, numbered through.

    Attributes:
        points: (N, 2) and boxes: (N, 4), in pixels of the prompt encoder's field. is_box: (N,) which of them counts.
        targets: (N, T) rows of `masks` that each may mean, small ones first; -1 for none.
        weights: (N, T) what each of them counts.
        masks: (U, h w, 16) bool, pixels of the masks that are meant.
    """

    points: Tensor
    boxes: Tensor
    is_box: Tensor
    targets: Tensor
    weights: Tensor
    masks: Tensor

    @classmethod
    def of(cls, images: list[PromptedImage], offset: tuple[int, int]) -> Prompts:
        """`offset` is the row and column, in tokens, at which the images lie in the field."""
        shift = np.array([offset[1], offset[0]], np.float32) * TOKEN
        masks: list[Tensor] = []
        targets, known = [], 0
        for image in images:
            used, place = np.unique(image.targets[image.targets >= 0], return_inverse=True)
            rows = np.full(image.targets.shape, -1)
            rows[image.targets >= 0] = place + known
            targets.append(rows)
            masks.append(torch.from_numpy(np.ascontiguousarray(image.table.T[used])[:, image.atoms]))
            known += len(used)

        def join(arrays: list[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays))

        return cls(
            points=join([image.points + shift for image in images]),
            boxes=join([image.boxes + np.tile(shift, 2) for image in images]),
            is_box=join([image.is_box for image in images]),
            targets=join(targets),
            weights=join([image.weights for image in images]),
            masks=in_tokens(torch.cat(masks)),
        )

    def to(self, device: torch.device) -> Prompts:
        return Prompts(*(part.to(device) for part in self))


class Sample(NamedTuple):
    """Tokens at which the masks of each prompt are compared.

    Attributes:
        places: (N, S) their numbers. weights: (N, S) how many tokens of the image each of them stands for.
    """

    places: Tensor
    weights: Tensor


def sample(prompts: Prompts, count: int) -> Sample:
    """A third anywhere, a third along borders of the targets, a third inside the smallest; without repetition."""
    covered = prompts.masks.float().mean(dim=2)  # (U, h w)
    valid = (prompts.targets >= 0).float()[..., None]
    at_border = ((covered > 0) & (covered < 1)).float()[prompts.targets] * valid
    shares = torch.stack(
        [torch.ones_like(at_border[:, 0]), at_border.amax(dim=1), (covered[prompts.targets[:, 0]] > 0).float()]
    )
    wanted = (shares / shares.sum(dim=2, keepdim=True).clamp(min=1)).sum(dim=0)
    count = min(count, wanted.shape[1])
    chance = torch.zeros_like(wanted)  # of a token to be among them
    for _ in range(8):  # no chance is above 1; what is over goes to the others
        free = chance < 1
        left = count - (~free).sum(dim=1, keepdim=True)
        chance = torch.where(
            free, (wanted * left / (wanted * free).sum(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1), 1.0
        )
    # Systematic sampling: steps of 1 along the summed chances.
    steps = torch.arange(count, device=chance.device) + torch.rand(len(chance), 1).to(chance.device)
    sums = chance.double().cumsum(dim=1)
    places = torch.searchsorted(sums * (count / sums[:, -1:]), steps.double()).clamp(max=chance.shape[1] - 1)
    return Sample(places, 1 / chance.gather(1, places))


def mask_loss(
    sam: Sam,
    embedding: Tensor,
    prompts: Prompts,
    offset: tuple[int, int] = (0, 0),
    second_round: bool = False,
    tokens: int = 128,
    ranked: float = 0.0,
    scored: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of all prompts of a batch, and what they reached.

    Every target trains the output that meets it best, as in Segment Anything, as much as it counts; with the weight
    `ranked`, the first output of a point is also trained towards the smallest mask around it, the last towards the
    largest. `scored` is the weight of the error of the predicted IoU.

    Args:
        embedding: (B, C, h, w).
        tokens: S.
    """
    encoder, count = sam.prompt_encoder, len(prompts.points)
    here = prompts.points.new_ones(count, 1)
    by_point, _ = encoder(points=(prompts.points[:, None], here), boxes=None, masks=None)
    by_box, _ = encoder(points=None, boxes=prompts.boxes, masks=None)
    sparse = torch.where(prompts.is_box[:, None, None], by_box, by_point)
    height, width = embedding.shape[-2:]
    position = encoder.get_dense_pe()[0, :, offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    position = position.flatten(1).T
    image = embedding.flatten(2).transpose(1, 2)
    answers = answer(sam.mask_decoder, image + encoder.no_mask_embed.weight, position, sparse)

    places, weights = sample(prompts, tokens)
    logits = masks_at(sam.mask_decoder, answers, places)
    valid = prompts.targets >= 0
    truth = prompts.masks[prompts.targets.clamp(min=0)[..., None], places[:, None]].float()
    cost, overlap = compare(logits.flatten(2), truth.flatten(2), weights.repeat_interleave(16, dim=1))
    # Outputs 1 to 3 answer a point, output 0 a prompt that says more.
    answering = torch.cat([prompts.is_box[:, None], ~prompts.is_box[:, None].expand(-1, 3)], dim=1)
    best = cost.masked_fill(~answering[..., None], math.inf).amin(dim=1)
    reached = overlap.masked_fill(~valid[:, None], 0).amax(dim=2)
    counts = prompts.weights[valid]
    loss = (best[valid] * counts).sum() / counts.sum()
    loss = loss + scored * F.mse_loss(answers.ious[answering], reached[answering])
    if ranked:
        meant = cost.masked_fill(~_of_rank(valid), math.inf).amin(dim=2)
        loss = loss + ranked * meant[answering].mean()
    if second_round and not prompts.is_box.all():
        loss = loss + _again(sam, image, position, prompts, offset, sparse)
    with torch.no_grad():
        found = overlap.masked_fill(~answering[..., None], 0).amax(dim=1)[valid]
        found = (found * counts).sum() / counts.sum()
        chosen = answers.ious.masked_fill(~answering, -math.inf).argmax(dim=1)
        error = (answers.ious - reached)[answering].abs().mean()
        believed = reached.gather(1, chosen[:, None]).mean()
    return loss, {"iou": float(found), "believed": float(believed), "iou_error": float(error)}


def _of_rank(valid: Tensor) -> Tensor:
    """(N, 4, T) which targets, ordered by size, (N, T) of them valid, an output may mean: all, the smallest, one
    between if there is one, the largest."""
    count = valid.sum(dim=1, keepdim=True)
    rank = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    between = torch.where(count > 2, (rank > 0) & (rank < count - 1), valid)
    return torch.stack([valid, rank == 0, between, rank == count - 1], dim=1)


def _again(
    sam: Sam, image: Tensor, position: Tensor, prompts: Prompts, offset: tuple[int, int], sparse: Tensor
) -> Tensor:
    """Loss of a second round in which the first mask and a point where it was wrong are prompts too.

    One prompt of each image takes part.
    """
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    per_image = len(prompts.points) // len(image)
    one = torch.arange(len(image), device=image.device) * per_image
    one = one + (~prompts.is_box).view(len(image), per_image).float().argmax(dim=1)
    one = one[~prompts.is_box[one]]
    pictures = image[one // per_image]
    side = math.isqrt(image.shape[1])
    truth = prompts.masks[prompts.targets[one, 0]].float()
    with torch.no_grad():
        answers = answer(decoder, pictures + encoder.no_mask_embed.weight, position, sparse[one])
        first = masks_at(decoder, answers)[:, 1]  # the output for the smallest
        first, whole = in_pixels(first, side), in_pixels(truth, side)
        added, label = wrong_points(first, whole)
    corner = added.new_tensor([offset[1], offset[0]]) * TOKEN
    points = torch.stack([prompts.points[one], added + corner], dim=1)
    labels = torch.stack([torch.ones_like(label), label], dim=1)
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=first[:, None])
    answers = answer(decoder, pictures + dense.flatten(2).transpose(1, 2), position, sparse)
    logits = masks_at(decoder, answers)[:, :1].flatten(2)
    cost, overlap = compare(logits, truth.flatten(1)[:, None], logits.new_ones(len(one), logits.shape[2]))
    return cost.mean() + F.mse_loss(answers.ious[:, :1], overlap[..., 0])


def wrong_points(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """A random place at which each mask errs, from logits (N, s, s) and truth (N, s, s).

    Returns x y in pixels of the image, (N, 2), and whether the place belongs to the truth, (N,) of 0 and 1.
    """
    side = logits.shape[-1]
    wrong = ((logits.flatten(1) > 0) != (truth.flatten(1) > 0.5)).float() + 1e-6
    place = torch.multinomial(wrong, 1)[:, 0]
    label = (truth.flatten(1).gather(1, place[:, None])[:, 0] > 0.5).float()
    return torch.stack([place % side, place // side], dim=1) * float(PIXEL) + PIXEL / 2, label


def compare(logits: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """2 x cross-entropy + dice loss, and IoU, of every output with every target.

    (N, K, P) and (N, T, P) give (N, K, T) each.

    The cross-entropy is a mean over the sample, which is dense where masks are hard; dice and IoU are those of the
    whole mask, estimated with the `weights` (N, P) of the sample. All pairs are a few matrix products.
    """
    other = truth.transpose(1, 2)
    entropy = F.softplus(logits).mean(dim=2, keepdim=True) - logits @ other / logits.shape[2]
    weighted = logits.sigmoid() * weights[:, None]
    area = (truth * weights[:, None]).sum(dim=2)[:, None]
    dice = 1 - (2 * weighted @ other + 1) / (weighted.sum(dim=2)[:, :, None] + area + 1)
    with torch.no_grad():
        hard = (logits > 0).float() * weights[:, None]
        both = hard @ other
        iou = both / (hard.sum(dim=2)[:, :, None] + area - both).clamp(min=1e-6)
    return 2 * entropy + dice, iou

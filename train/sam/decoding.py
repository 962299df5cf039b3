"""What a mask decoder answers to many prompts, arranged for training: the same function, with a fraction of the work.

Prompts of one image share what depends on the image alone, attention never projects the image (the few tokens of
a prompt are projected instead), and masks are computed at some of the image's tokens only: a loss needs no more.

Shapes: G images, N prompts (N / G in a row belong to each image), t tokens of a prompt, K masks of a prompt,
C channels, p tokens of an image, S of them that are looked at, each of which holds 4x4 pixels of a mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor
from torch.nn import functional as F


class Answers(NamedTuple):
    """What the transformer made of prompts.

    Attributes:
        image: (N, p, C) tokens of the image, as each prompt sees them.
        weights: (N, K, C / 8) of the masks. ious: (N, K) predicted.
    """

    image: Tensor
    weights: Tensor
    ious: Tensor


def answer(decoder: MaskDecoder, image: Tensor, position: Tensor, prompts: Tensor) -> Answers:
    """The first half of MaskDecoder.predict_masks.

    Args:
        image: (G, p, C), embedding and dense prompt added up. position: (p, C).
        prompts: (N, t', C), the sparse prompts.
    """
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], dim=1)
    transformer: Any = decoder.transformer
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + tokens
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        located = image + position
        queries = layer.norm2(queries + _look(layer.cross_attn_token_to_image, queries + tokens, located, image))
        queries = layer.norm3(queries + layer.mlp(queries))
        told = _tell(layer.cross_attn_image_to_token, located, queries + tokens, queries)
        image = layer.norm4(image.repeat_interleave(len(told) // len(image), 0) + told)
    final = transformer.final_attn_token_to_image
    queries = transformer.norm_final_attn(queries + _look(final, queries + tokens, image + position, image))
    weights = [head(queries[:, 1 + number]) for number, head in enumerate(decoder.output_hypernetworks_mlps)]
    return Answers(image, torch.stack(weights, dim=1), decoder.iou_prediction_head(queries[:, 0]))


def _look(attention: Any, queries: Tensor, located: Tensor, image: Tensor) -> Tensor:
    """Tokens (N, t, C) attend to an image (G, p, C): softmax((q Wk) x') x Wv is softmax(q (Wk x)') (x Wv).

    The bias of the keys adds the same to every place, so it is no matter.
    """
    heads, (count, t) = attention.num_heads, queries.shape[:2]
    q = attention.q_proj(queries).unflatten(2, (heads, -1))
    q = q / q.shape[-1] ** 0.5
    asked = torch.einsum("nthd,hdc->nhtc", q, attention.k_proj.weight.unflatten(0, (heads, -1)))
    rows = asked.reshape(len(image), -1, image.shape[2])  # of all prompts of an image
    seen = (rows @ located.transpose(1, 2)).softmax(dim=2) @ image
    values = attention.v_proj.weight.unflatten(0, (heads, -1))
    found = torch.einsum("nhtc,hdc->nthd", seen.reshape(count, heads, t, -1), values)
    return attention.out_proj(found.flatten(2) + attention.v_proj.bias)


def _tell(attention: Any, located: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """An image (G, p, C) attends to the tokens (N, t, C) of each of its prompts: (N, p, C)."""
    heads, (count, t) = attention.num_heads, keys.shape[:2]
    k = attention.k_proj(keys).unflatten(2, (heads, -1))
    k = k / k.shape[-1] ** 0.5
    rows = torch.einsum("nthd,hdc->nhtc", k, attention.q_proj.weight.unflatten(0, (heads, -1)))
    level = torch.einsum("nthd,hd->nht", k, attention.q_proj.bias.unflatten(0, (heads, -1)))
    scores = rows.reshape(len(located), -1, located.shape[2]) @ located.transpose(1, 2)
    shares = (scores.view(count, heads, t, -1) + level[..., None]).softmax(dim=2)
    v = attention.v_proj(values).unflatten(2, (heads, -1))
    said = torch.einsum("nthd,chd->nhtc", v, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return torch.baddbmm(attention.out_proj.bias, shares.flatten(1, 2).transpose(1, 2), said.flatten(1, 2))


def masks_at(decoder: MaskDecoder, answers: Answers, places: Tensor | None = None) -> Tensor:
    """Logits (N, K, S, 16) of the masks at some tokens of the image, (N, S) of their numbers, or at all.

    The 4x4 pixels of a token come as upscaling makes them: by halves, quarters; `in_tokens` brings masks there.
    """
    image = answers.image
    if places is not None:
        image = image.gather(1, places[:, :, None].expand(-1, -1, image.shape[2]))
    widen, norm, _, again, _ = decoder.output_upscaling
    x: Any = _halved(widen, image)
    x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    x = F.gelu(_halved(again, x))
    return (answers.weights @ x.flatten(1, -2).transpose(1, 2)).unflatten(2, (image.shape[1], 16))


def _halved(upscale: Any, x: Tensor) -> Tensor:
    """A 2x2 transposed convolution of stride 2 of (..., C): (..., 4, C')."""
    weight = upscale.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, upscale.bias.repeat(4)).unflatten(-1, (4, -1))


def in_tokens(masks: Tensor) -> Tensor:
    """(..., 4h, 4w) to (..., h w, 16), in the order of `masks_at`."""
    h, w = masks.shape[-2] // 4, masks.shape[-1] // 4
    split = masks.reshape(-1, h, 2, 2, w, 2, 2)  # row of the token, of its half, of its quarter; columns likewise
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(*masks.shape[:-2], h * w, 16)


def in_pixels(masks: Tensor, h: int) -> Tensor:
    """(..., h w, 16) to (..., 4h, 4w): what `in_tokens` did, undone."""
    split = masks.reshape(-1, h, masks.shape[-2] // h, 2, 2, 2, 2)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(*masks.shape[:-2], 4 * h, -1)

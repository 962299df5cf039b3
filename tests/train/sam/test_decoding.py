"""Training's arrangement of the mask decoder gives what segment-anything's own gives."""

from __future__ import annotations

import pytest
import torch

from samdeblur.models.networks.sam import build_small_sam
from samdeblur.train.sam.decoding import answer, in_pixels, in_tokens, masks_at


def rows(maps):
    return maps.flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def parts(tiny):
    torch.manual_seed(0)
    sam = build_small_sam(tiny).eval()
    for parameter in sam.parameters():  # biases that are zero by default count too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return sam, torch.randn(2, 8, 4, 4), torch.randn(1, 8, 4, 4), torch.randn(6, 2, 8)


def test_prompts_of_several_images_are_answered_as_those_of_one(parts):
    sam, embedding, position, prompts = parts
    dense = torch.randn(1, 8, 1, 1).expand(1, 8, 4, 4)
    with torch.no_grad():
        found = answer(sam.mask_decoder, rows(embedding + dense), rows(position)[0], prompts)
        logits = in_pixels(masks_at(sam.mask_decoder, found), 4)
        for picture in range(2):
            own = slice(3 * picture, 3 * picture + 3)
            masks, ious = sam.mask_decoder.predict_masks(
                embedding[picture : picture + 1], position, prompts[own], dense.expand(3, -1, -1, -1)
            )
            assert torch.allclose(logits[own], masks, atol=1e-5)
            assert torch.allclose(found.ious[own], ious, atol=1e-5)


def test_each_prompt_may_bring_its_own_dense_one(parts):
    sam, embedding, position, prompts = parts
    dense = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        found = answer(sam.mask_decoder, rows(embedding + dense), rows(position)[0], prompts[:2])
        logits = in_pixels(masks_at(sam.mask_decoder, found), 4)
        for number in range(2):
            one = slice(number, number + 1)
            masks, _ = sam.mask_decoder.predict_masks(embedding[one], position, prompts[one], dense[one])
            assert torch.allclose(logits[one], masks, atol=1e-5)


def test_gradients_are_the_same(parts):
    sam, embedding, position, prompts = parts
    dense = torch.zeros(3, 8, 4, 4)
    grads = []
    for ours in (True, False):
        sam.zero_grad()
        if ours:
            found = answer(sam.mask_decoder, rows(embedding[:1]), rows(position)[0], prompts[:3])
            masks, ious = in_pixels(masks_at(sam.mask_decoder, found), 4), found.ious
        else:
            masks, ious = sam.mask_decoder.predict_masks(embedding[:1], position, prompts[:3], dense)
        (masks.square().mean() + ious.square().mean()).backward()
        grads.append({name: p.grad.clone() for name, p in sam.mask_decoder.named_parameters() if p.grad is not None})
    for name, expected in grads[1].items():
        ours = grads[0].get(name, torch.zeros_like(expected))  # a bias of keys is no matter: its gradient is rounding
        assert torch.allclose(ours, expected, atol=1e-5), name


def test_masks_at_some_places_are_those_of_the_whole(parts):
    sam, embedding, position, prompts = parts
    places = torch.tensor([[3, 3, 15]] * 6)
    with torch.no_grad():
        found = answer(sam.mask_decoder, rows(embedding), rows(position)[0], prompts)
        whole, some = masks_at(sam.mask_decoder, found), masks_at(sam.mask_decoder, found, places)
    assert torch.allclose(some, whole[:, :, [3, 3, 15]], atol=1e-6)


def test_pixels_of_a_token_go_where_they_belong():
    masks = torch.arange(2 * 8 * 12).view(2, 8, 12)
    tokens = in_tokens(masks)
    assert tokens.shape == (2, 6, 16)
    assert set(tokens[0, 4].tolist()) == set(masks[0, 4:8, 4:8].flatten().tolist())
    assert torch.equal(in_pixels(tokens, 2), masks)

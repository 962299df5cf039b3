from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samdeblur.models.networks.sam import build_small_sam
from samdeblur.train.sam.affinity import extents
from samdeblur.train.sam.decoding import answer
from samdeblur.train.sam.losses import Prompts, _of_rank, compare, mask_loss, sample, wrong_points
from samdeblur.train.sam.prompts import draw


def test_the_loss_of_all_pairs_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 40, generator=generator) * 3
    truth = (torch.rand(2, 5, 40, generator=generator) > 0.6).float()
    weights = torch.rand(2, 40, generator=generator) + 0.5
    cost, iou = compare(logits, truth, weights)
    assert cost.shape == iou.shape == (2, 3, 5)
    for n, k, t in np.ndindex(2, 3, 5):
        x, y, w = logits[n, k], truth[n, t], weights[n]
        p = x.sigmoid()
        dice = 1 - (2 * (w * p * y).sum() + 1) / ((w * p).sum() + (w * y).sum() + 1)
        assert cost[n, k, t] == pytest.approx(float(2 * F.binary_cross_entropy_with_logits(x, y) + dice), rel=1e-4)
        hard = x > 0
        both, either = (w * (hard & (y > 0))).sum(), (w * (hard | (y > 0))).sum()
        assert iou[n, k, t] == pytest.approx(float(both / either), rel=1e-4)


def test_a_sample_stands_for_the_whole_image(worlds):
    """Sums over the sample, weighted, are those over all tokens, on average; no token comes twice."""
    torch.manual_seed(0)
    prompts = Prompts.of([draw(worlds, 12, 8, (2, 0))], (0, 0))
    covered = prompts.masks.float().mean(dim=2)[prompts.targets[:, 0]]
    totals = []
    for _ in range(200):
        places, weights = sample(prompts, 50)
        assert places.shape == weights.shape == (8, 50)
        assert all(len(set(row.tolist())) == 50 for row in places)
        totals.append((weights * covered.gather(1, places)).sum(dim=1))
    expected = covered.sum(dim=1)
    mean, spread = torch.stack(totals).mean(dim=0), torch.stack(totals).std(dim=0) / 200**0.5
    assert ((mean - expected).abs() <= 4 * spread + 0.01 * expected).all()


def test_a_sample_of_everything_is_everything(worlds):
    prompts = Prompts.of([draw(worlds, 4, 3, (2, 0))], (0, 0))
    places, weights = sample(prompts, 100)
    assert torch.equal(places.sort(dim=1).values, torch.arange(16).expand(3, 16))
    assert torch.allclose(weights, torch.ones(3, 16))


def test_borders_and_small_masks_are_looked_at_more(worlds):
    torch.manual_seed(0)
    prompts = Prompts.of([draw(worlds, 12, 30, (2, 1))], (0, 0))
    covered = prompts.masks.float().mean(dim=2)[prompts.targets[:, 0]]
    inside = (covered > 0).float()
    small = inside.mean(dim=1) < 0.15
    assert small.any()
    places, _ = sample(prompts, 40)
    assert (inside.gather(1, places).mean(dim=1) > 1.5 * inside.mean(dim=1))[small].all()


def test_the_first_output_may_mean_the_smallest_mask_and_the_last_the_largest():
    valid = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    allowed = _of_rank(valid).int().tolist()
    assert [row[1] for row in allowed] == [[1, 0, 0, 0]] * 4
    assert [row[2] for row in allowed] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert [row[3] for row in allowed] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_target_that_counts_for_nothing_is_not_learnt(worlds, tiny):
    torch.manual_seed(0)
    sam = build_small_sam(tiny)
    embedding = torch.randn(1, 8, 8, 8)
    prompts = Prompts.of([draw(worlds, 8, 20, (8, 1))], (0, 0))
    asked = prompts.weights == 1
    assert ((prompts.targets >= 0) & ~asked).any()

    def loss(weights):
        torch.manual_seed(1)  # of the sample
        return float(mask_loss(sam, embedding, prompts._replace(weights=weights), scored=0)[0].detach())

    as_it_is, double = loss(prompts.weights), loss(2 * prompts.weights)
    assert as_it_is == pytest.approx(double, rel=1e-6)
    alone, beside = loss(asked.float()), loss((~asked).float())
    share = float(prompts.weights[prompts.targets >= 0].sum())
    mine = float((asked & (prompts.targets >= 0)).sum()) / share
    assert as_it_is == pytest.approx(mine * alone + (1 - mine) * beside, rel=1e-5)
    assert alone != pytest.approx(beside, rel=1e-3)


def test_points_mean_the_same_place_wherever_the_image_lies(worlds, tiny, monkeypatch):
    """The prompt encoder's field is larger than a small training image: point and positions shift together."""
    torch.manual_seed(0)
    sam = build_small_sam(tiny)
    image = draw(worlds, 4, 4, (0, 0))
    embedding = torch.randn(1, 8, 4, 4)
    seen = []
    monkeypatch.setattr("samdeblur.train.sam.losses.answer", lambda *inputs: seen.append(inputs) or answer(*inputs))
    near, far = (Prompts.of([image], offset) for offset in ((0, 0), (1, 2)))
    mask_loss(sam, embedding, near, (0, 0))
    mask_loss(sam, embedding, far, (1, 2))
    whole = sam.prompt_encoder.get_dense_pe()[0]
    assert torch.equal(seen[0][2], whole[:, :4, :4].flatten(1).T)
    assert torch.equal(seen[1][2], whole[:, 1:5, 2:6].flatten(1).T)
    assert torch.equal(far.points - near.points, torch.tensor([16.0, 8.0]).expand_as(near.points))
    assert torch.equal(far.boxes - near.boxes, torch.tensor([16.0, 8.0, 16.0, 8.0]).expand_as(near.boxes))


def test_correction_points_lie_where_the_mask_is_wrong():
    torch.manual_seed(0)
    truth = torch.zeros(3, 8, 8)
    truth.view(3, 64)[:, 10:20] = 1
    logits = torch.where(truth > 0, 4.0, -4.0)
    logits.view(3, 64)[0, 12], logits.view(3, 64)[1, 40] = -4.0, 4.0
    for _ in range(5):
        points, labels = wrong_points(logits, truth)
        assert points[0].tolist() == [2 * 4 + 1, 2 * 1 + 1]
        assert points[1].tolist() == [2 * 0 + 1, 2 * 5 + 1]
        assert labels[:2].tolist() == [1, 0]


def test_extents_say_where_masks_have_their_middle_and_how_large_they_are(worlds):
    image = draw(worlds, 8, 1, (6, 2))
    reach, known = extents(image)
    assert reach.shape == (64, 6)
    assert known.any()
    for token in np.flatnonzero(known):
        row, column = divmod(int(token), 8)
        around = np.flatnonzero(image.table[image.atoms[4 * row + 2, 4 * column + 2]])
        masks = [image.table[image.atoms, mask] for mask in around]
        masks = [mask for mask in masks if mask.mean() >= 0.001]
        for mask, found in ((min(masks, key=np.sum), reach[token, :3]), (max(masks, key=np.sum), reach[token, 3:])):
            root = 4 * 2 ** (2 * float(found[2]))
            assert root**2 == pytest.approx(mask.sum(), rel=1e-3)
            middle = found[:2] * root + (4 * row + 2, 4 * column + 2)
            assert middle == pytest.approx(np.argwhere(mask).mean(axis=0), abs=0.01)

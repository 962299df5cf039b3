from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samdeblur.models import load_sam
from samdeblur.models.networks.sam import SamConfig, build_small_sam
from samdeblur.pipeline import MaskGenerator, PrepSettings, open_source, prepare
from samdeblur.storage import open_store
from samdeblur.train.sam.prompts import draw
from samdeblur.train.sam.training import Phase, Prompts, compare, decode, mask_loss, train_sam, wrong_points

TINY = SamConfig(img_size=64, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), embed_dim=8, heads=2, mlp_dim=16)
PHASES = (
    Phase(tokens=2, steps=2, batch=2, prompts=0, lr=1e-3, lr_end=1e-3, auxiliary=1.0),
    Phase(tokens=4, steps=3, batch=2, prompts=3, lr=1e-3, lr_end=1e-4, auxiliary=0.5),
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    path = tmp_path_factory.mktemp("worlds") / "w.zarr"
    prepare(open_source("worlds:4:96", "train"), path, PrepSettings(true_masks=True, device="cpu"), workers=1)
    return open_store(path)


@pytest.mark.parametrize("tokens", [2, 4, 6])
def test_prompts_lie_in_their_targets(worlds, tokens):
    for seed in range(8):
        image = draw(worlds, tokens, 12, (3, seed))
        size = 16 * tokens
        assert image.image.shape == (size, size, 3)
        assert image.masks.shape[1:] == (size // 4, size // 4)
        assert image.groups.shape == (2 * tokens, 2 * tokens)
        for point, box, is_box, targets in zip(image.points, image.boxes, image.is_box, image.targets, strict=True):
            meant = targets[targets >= 0]
            assert list(targets) == [*meant, *[-1] * (3 - len(meant))]
            assert len(set(meant)) == len(meant)
            if is_box and len(meant):
                assert len(meant) == 1
                rows, columns = np.nonzero(image.masks[meant[0]])
                centre = 4 * columns.mean(), 4 * rows.mean()
                assert box[0] - 8 <= centre[0] <= box[2] + 8
                assert box[1] - 8 <= centre[1] <= box[3] + 8
            for target in meant:
                column, row = (point // 4).astype(int)
                assert image.masks[target, row, column] > 0


def test_prompts_follow_from_the_seed(worlds):
    first, again, other = (draw(worlds, 4, 6, (1, seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image)


def test_the_loss_of_all_pairs_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 40, generator=generator) * 3
    truth = (torch.rand(2, 5, 40, generator=generator) > 0.6).float()
    cost, iou = compare(logits, truth)
    assert cost.shape == iou.shape == (2, 3, 5)
    for n, k, t in np.ndindex(2, 3, 5):
        x, y = logits[n, k], truth[n, t]
        p = x.sigmoid()
        right = torch.where(y > 0, p, 1 - p)
        focal = ((1 - right) ** 2 * F.binary_cross_entropy_with_logits(x, y, reduction="none")).mean()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        assert cost[n, k, t] == pytest.approx(float(20 * focal + dice), rel=1e-4)
        hard = x > 0
        assert iou[n, k, t] == pytest.approx(float((hard & (y > 0)).sum() / (hard | (y > 0)).sum()))


def test_points_mean_the_same_place_wherever_the_picture_lies(worlds):
    """The prompt encoder's field is larger than a small training picture: point and positions shift together."""
    torch.manual_seed(0)
    sam = build_small_sam(TINY)
    image = draw(worlds, 2, 4, (0, 0))
    embedding = torch.randn(1, 8, 2, 2)
    rows = []
    handle = sam.mask_decoder.transformer.register_forward_hook(lambda module, inputs, output: rows.append(inputs))
    near, far = (Prompts.of([image], offset) for offset in ((0, 0), (1, 2)))
    mask_loss(sam, embedding, near, (0, 0), second_round=False)
    mask_loss(sam, embedding, far, (1, 2), second_round=False)
    handle.remove()
    whole = sam.prompt_encoder.get_dense_pe()
    assert torch.equal(rows[0][1][0], whole[0, :, :2, :2])
    assert torch.equal(rows[1][1][0], whole[0, :, 1:3, 2:4])
    assert torch.equal(far.points - near.points, torch.tensor([32.0, 16.0]).expand_as(near.points))
    assert torch.equal(far.boxes - near.boxes, torch.tensor([32.0, 16.0, 32.0, 16.0]).expand_as(near.boxes))


def test_a_trained_model_loads_and_generates_masks(worlds, tmp_path):
    rows = []
    train_sam(worlds, tmp_path, TINY, PHASES, progress=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(row["loss"]) for row in rows)
    sam = load_sam(tmp_path / "sam.safetensors")
    loose = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "points_per_side": 3}
    masks, records = MaskGenerator(sam, **loose).generate(worlds.image("sharp", worlds.keys[0]))
    assert masks.n_masks == len(records["predicted_iou"])


def test_a_stopped_training_goes_on_to_the_same_weights(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr("samdeblur.train.sam.training.SAVE_EVERY", 2)
    torch.set_num_threads(1)
    train_sam(worlds, tmp_path / "whole", TINY, PHASES)

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        train_sam(worlds, tmp_path / "cut", TINY, PHASES, progress=stop)
    train_sam(worlds, tmp_path / "cut", TINY, PHASES)
    whole, cut = ((tmp_path / name / "sam.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_prompts_of_several_images_are_decoded_as_segment_anything_decodes_one():
    torch.manual_seed(0)
    sam = build_small_sam(TINY).eval()
    embedding, prompts = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 2, 8)
    dense = torch.randn(2, 3, 8, 4, 4)
    position = sam.prompt_encoder.get_dense_pe()
    with torch.no_grad():
        logits, ious = decode(
            sam.mask_decoder, embedding.repeat_interleave(3, 0), position, prompts.flatten(0, 1), dense.flatten(0, 1)
        )
        for image in range(2):
            one = embedding[image : image + 1]
            expected = sam.mask_decoder.predict_masks(one, position, prompts[image], dense[image])
            assert torch.allclose(logits[3 * image : 3 * image + 3], expected[0], atol=1e-4)
            assert torch.allclose(ious[3 * image : 3 * image + 3], expected[1], atol=1e-4)


def test_correction_points_lie_where_the_mask_is_wrong():
    torch.manual_seed(0)
    truth = torch.zeros(3, 64)
    truth[:, 10:20] = 1
    logits = torch.where(truth > 0, 4.0, -4.0)
    logits[0, 12], logits[1, 40] = -4.0, 4.0
    for _ in range(5):
        points, labels = wrong_points(logits.unflatten(1, (8, 8)), truth)
        assert points[0].tolist() == [4 * 4 + 2, 4 * 1 + 2]
        assert points[1].tolist() == [0 * 4 + 2, 4 * 5 + 2]
        assert labels[:2].tolist() == [1, 0]

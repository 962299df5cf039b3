"""The same masks as the reference, with the bundled model, on photographs and procedural scenes."""

from __future__ import annotations

import cv2
import numpy as np
import pretended
import pytest
import skimage.data
import torch
from sam_families import compared, generated
from segment_anything import SamAutomaticMaskGenerator

from samdeblur.models import NotFinite, load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.segmenters import mask_generator as masks
from samdeblur.pipeline.segmenters import packed as packing
from samdeblur.pipeline.segmenters.packed import PackedMask, box_of, count_above, pack_above
from samdeblur.pipeline.sources.worlds import WorldSource

PHOTOGRAPHS = {  # name: height, width
    "astronaut": (96, 96),
    "chelsea": (75, 113),
    "coffee": (131, 97),
    "rocket": (64, 160),
    "camera": (101, 50),
    "retina": (90, 91),
}
THRESHOLDS = {
    "all pass": {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0, "points_per_side": 9, "box_nms_thresh": 0.99},
    "bundled": {name: value for name, value in BUNDLED_SETTINGS.items() if name != "points_per_side"},
    "small regions go": {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.3, "min_mask_region_area": 40},
    "crops": {
        "pred_iou_thresh": 0.1,
        "stability_score_thresh": 0.2,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 10,
    },
    "default": {},
}


@pytest.fixture(scope="module")
def sam():
    return load_sam("bundled")


@pytest.fixture(scope="module")
def images():
    found = {}
    for name, (height, width) in PHOTOGRAPHS.items():
        photograph = getattr(skimage.data, name)()
        photograph = np.stack([photograph] * 3, axis=-1) if photograph.ndim == 2 else photograph[..., :3]
        found[name] = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
    source = WorldSource.of("worlds:6:128", "val")
    for number, key in enumerate(source.keys):
        found[f"world {number}"] = source.read(key).blurred[: 128 - 7 * number, : 60 + 11 * number]
    return found


def compare(sam, image, settings):
    """Both generators; returns the number of masks."""
    theirs = generated(SamAutomaticMaskGenerator(sam, **settings), image)
    return compared(theirs, MaskGenerator(sam, **settings).generate(image))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_bundled_model_gives_the_masks_of_the_reference(sam, images, threshold):
    some = list(images)[:: {"all pass": 3, "crops": 3}.get(threshold, 2)]
    found = [compare(sam, images[name], {"points_per_side": 4} | THRESHOLDS[threshold]) for name in some]
    assert sum(found) > (0 if threshold == "default" else len(found))
    assert threshold != "all pass" or max(found) > 150


def test_the_same_image_gives_the_same_masks_again(sam, images):
    settings = {"points_per_side": 4} | THRESHOLDS["bundled"]
    first, second = (MaskGenerator(sam, **settings).generate(images["coffee"]) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (3, 3), (1, 1)])
def test_very_narrow_images(sam, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    compare(sam, image, {"points_per_side": 2} | THRESHOLDS["all pass"])


@pytest.mark.parametrize(("shape", "words"), [((2000, 1), "too narrow"), ((1, 32768), "at most 32767")])
def test_images_that_cannot_be_segmented_are_refused(sam, shape, words):
    with pytest.raises(ValueError, match=words):
        MaskGenerator(sam, points_per_side=2).generate(np.zeros((*shape, 3), np.uint8))


def test_packed_masks_unpack(random_masks):
    masks = random_masks(np.random.default_rng(0), 12, 33, 45)
    masks[5] = False
    bits = pack_above(torch.as_tensor(masks.astype(np.float32)), 0.5)
    for mask, rows in zip(masks, bits, strict=True):
        box = box_of(rows)
        packed = PackedMask.of(rows)
        assert packed.box == box
        assert np.array_equal(packed.full(33, 45), mask)
        assert packed.area == mask.sum()
        y, x = np.nonzero(mask)
        assert box == ((x.min(), y.min(), x.max(), y.max()) if mask.any() else (0, 0, 0, 0))
    shifted = PackedMask.of(bits[1], (10, 20)).full(60, 70)
    assert np.array_equal(shifted[20:53, 10:55], masks[1])
    assert shifted.sum() == masks[1].sum()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_gpu_gives_the_same_masks_and_sends_those_alone_that_are_kept(sam, images, threshold, monkeypatch):
    settings = {"points_per_side": 5, "points_per_batch": 8} | THRESHOLDS[threshold]
    expected, records = MaskGenerator(sam, **settings).generate(images["coffee"])
    sent, pack = [], packing.to_host
    monkeypatch.setattr(masks, "to_host", lambda found: sent.append(list(found)) or pack(found))
    with pretended.cuda():
        atoms, same = MaskGenerator(pretended.moved(sam), **settings).generate(images["coffee"])
    assert atoms == expected
    assert all(np.array_equal(same[name], records[name], equal_nan=True) for name in records)
    there = [mask for mask in sent[0] if isinstance(mask, packing.DeviceMask)]
    assert len(there) == len(sent[0])
    if "min_mask_region_area" not in settings:  # which is the host's
        assert len(there) == expected.n_masks


def test_a_gpu_has_the_next_points_before_the_host_waits_for_these(sam, images, monkeypatch):
    order = []
    decode, get = MaskGenerator._decode, packing.Soon.get
    monkeypatch.setattr(MaskGenerator, "_decode", lambda *arguments: order.append("launched") or decode(*arguments))
    monkeypatch.setattr(packing.Soon, "get", lambda self: order.append("waited") or get(self))
    settings = {"points_per_side": 4, "points_per_batch": 4} | THRESHOLDS["bundled"]
    with pretended.cuda():
        finish = MaskGenerator(pretended.moved(sam), **settings).find(images["coffee"])
        assert order == ["launched", *["launched", "waited"] * 3, "waited"]
        before = len(order)
        finish()
    assert order[before:] == ["waited"] * 4  # three columns and the bits, outside of what the next image waits for


def test_what_a_device_counts_boxes_and_packs_is_what_the_host_does(random_masks):
    masks = random_masks(np.random.default_rng(3), 9, 21, 37)
    masks[4] = False
    planes = torch.as_tensor(masks.astype(np.float32))
    rows = pack_above(planes, 0.5)
    with pretended.cuda():
        there = (planes > 0.5).to(pretended.CUDA)
        assert torch.equal(packing.boxes_there(there).cpu(), torch.tensor([box_of(row) for row in rows]))
        assert np.array_equal(packing.pack_there(there).cpu().numpy(), rows)
        assert torch.equal(count_above(planes.to(pretended.CUDA), 0.5).cpu(), count_above(planes, 0.5))


def test_a_device_that_runs_full_gets_fewer_masks_at_a_time_and_the_masks_are_the_same(sam, images, monkeypatch):
    settings = THRESHOLDS["all pass"] | {"points_per_batch": 16}
    generator = MaskGenerator(sam, **settings)
    expected, records = generator.generate(images["chelsea"])
    assert generator.splits == 0
    bring_to_full_size = type(sam).postprocess_masks

    def at_most_five(self, masks, *sizes):
        if masks.shape[1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bring_to_full_size(self, masks, *sizes)

    monkeypatch.setattr(type(sam), "postprocess_masks", at_most_five)
    atoms, same = generator.generate(images["chelsea"])
    assert atoms == expected
    assert all(np.array_equal(same[name], records[name]) for name in records)
    assert generator.splits > 0


def test_a_device_too_small_for_one_mask_is_an_error(sam, images, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(sam), "postprocess_masks", never)
    with pytest.raises(torch.OutOfMemoryError):
        MaskGenerator(sam, **THRESHOLDS["all pass"]).generate(images["chelsea"])


def test_scores_that_are_not_finite_are_an_error_and_not_an_image_without_masks(sam, images, monkeypatch):
    predict = type(sam.mask_decoder).forward

    def spoiled(self, **inputs):
        masks, iou = predict(self, **inputs)
        return masks, iou * float("nan")

    monkeypatch.setattr(type(sam.mask_decoder), "forward", spoiled)
    with pytest.raises(NotFinite, match="not finite; check the checkpoint"):
        MaskGenerator(sam).generate(images["chelsea"])

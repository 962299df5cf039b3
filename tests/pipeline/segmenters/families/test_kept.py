"""Embeddings of every family go out of a model and into it again: masks with kept ones are those without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam_families import hq_model_of_transformers, sam2_model_of_transformers, sam3_model_of_transformers, small_sam2

from samdeblur.models import NotFinite
from samdeblur.pipeline import SamSegmenter
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.families.sam2 import Sam2
from samdeblur.pipeline.segmenters.kept import pack, shapes_of
from samdeblur.pipeline.segmenters.speed import EXACT

LOOSE = {
    "points_per_side": 3,
    "pred_iou_thresh": -1.0,
    "stability_score_thresh": -1.0,
    "crop_n_layers": 1,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}


def in_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return open_model(tmp_path, torch.device("cpu"), EXACT)


def model_of(family, random_sam, tmp_path):
    if family == "sam":
        return OriginalSam(random_sam())
    if family == "sam2":
        pytest.importorskip("sam2", reason="the extra `segmenters` is not installed")
        return Sam2(small_sam2())
    pytest.importorskip("transformers", reason="the extra `segmenters` is not installed")
    if family == "sam2 folder":
        pytest.importorskip("sam2", reason="the extra `segmenters` is not installed")
        return in_folder(sam2_model_of_transformers(small_sam2().state_dict()), tmp_path)
    small = hq_model_of_transformers() if family == "sam-hq" else sam3_model_of_transformers()
    return in_folder(small, tmp_path)


@pytest.mark.parametrize("family", ["sam", "sam2", "sam2 folder", "sam-hq", "sam3"])
def test_masks_with_embeddings_that_were_kept_are_those_without(family, random_sam, random_image, tmp_path):
    segmenter = SamSegmenter(model_of(family, random_sam, tmp_path), "", **LOOSE)
    image = random_image(0, 61, 83)
    atoms, records = segmenter.segment(image)
    crops = segmenter.embed_crops(image)
    maps = [torch.cat(of_crops).numpy() for of_crops in zip(*(crop.embedding.features for crop in crops), strict=True)]
    for embedding in (crops, segmenter.kept_crops(image.shape[:2], maps)):
        found, its_records = segmenter.segment(image, embedding)
        assert found == atoms
        assert all(np.array_equal(its_records[name], values) for name, values in records.items())
    assert atoms.n_masks > 3
    assert shapes_of(segmenter) == tuple(each.shape for each in pack(crops))


def test_values_beyond_half_precision_are_an_error(random_sam, random_image):
    sam = random_sam()
    with torch.no_grad():
        sam.image_encoder.neck[-1].weight.mul_(1e6)
    crops = SamSegmenter(sam, "").embed_crops(random_image(0, 40, 40))
    with pytest.raises(NotFinite, match="beyond float16"):
        pack(crops)

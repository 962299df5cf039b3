"""MobileSAM with timm's encoder: the masks of the generator of its own package (of which a mirror is on PyPI)."""

from __future__ import annotations

import cv2
import pytest
import skimage.data
import torch
from sam_families import around_points, compared, generated, small_mobile_sam

from samdeblur.models import CheckpointError
from samdeblur.models.networks.mobile_sam import build_mobile_sam
from samdeblur.pipeline import MaskGenerator, Weights
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.speed import EXACT

pytest.importorskip("timm", reason="the extra `segmenters` is not installed")
mobile_sam = pytest.importorskip("mobile_sam", reason="mobilesam-mirror is not installed")

SIDE = 128
IMAGE_SIZES = {"astronaut": (97, 96), "chelsea": (75, 113), "coffee": (131, 97), "rocket": (64, 160)}
ALL = {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0}
SETTINGS = {
    "everything passes": {**ALL, "box_nms_thresh": 0.99},
    "some pass": {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.2},
    "nothing passes": {"pred_iou_thresh": 1.0, "stability_score_thresh": 1.0},
    "crops": {**ALL, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
}


@pytest.fixture(scope="module")
def theirs():
    return small_mobile_sam(side=SIDE)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_masks_are_those_of_the_packages_generator(settings):
    theirs = small_mobile_sam(side=SIDE)
    mine = build_mobile_sam(theirs.state_dict(), SIDE)
    for sam in (theirs, mine):
        around_points(sam.mask_decoder, theirs.prompt_encoder.point_embeddings[1].weight.detach())
    generator, counts = MaskGenerator(OriginalSam(mine), points_per_side=5, **settings), []
    for name, (height, width) in IMAGE_SIZES.items():
        image = cv2.resize(getattr(skimage.data, name)()[..., :3], (width, height), interpolation=cv2.INTER_AREA)
        reference = mobile_sam.SamAutomaticMaskGenerator(theirs, points_per_side=5, **settings)
        counts.append(compared(generated(reference, image), generator.generate(image), 1e-5))
    assert (sum(counts) > 0) is (settings["pred_iou_thresh"] < 1)


def test_the_encoder_is_that_of_the_package(theirs):
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.image_encoder(image)
        assert torch.allclose(build_mobile_sam(theirs.state_dict(), SIDE).image_encoder(image), expected, atol=2e-5)
    assert expected.std() > 0.1


def test_a_checkpoint_is_recognised(theirs, tmp_path):
    torch.save({"model": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "m.pt")
    weights = Weights.of_sam(str(tmp_path / "m.pt"))
    model = open_model(weights.check(), torch.device("cpu"), EXACT)
    assert (weights.family, model.family) == ("mobile-sam", "mobile-sam")


def test_what_is_missing_is_said(theirs, tmp_path):
    state = dict(theirs.state_dict())
    del state["image_encoder.neck.0.weight"]
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"not a usable MobileSAM checkpoint, .*no 'image_encoder.neck.0.weight'"):
        open_model(tmp_path / "m.pt", torch.device("cpu"), EXACT)

"""What calibrates the bundled model sees the masks of automatic generation, and changes their scores alone."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from places import ROOT

from samdeblur.evaluation.masks.matching import mask_iou, match
from samdeblur.models.networks.sam import Calibration, SamConfig, build_small_sam
from samdeblur.pipeline import MaskGenerator
from samdeblur.pipeline.sources.worlds import WorldSource


@pytest.fixture(scope="module")
def bundled():
    """benchmarks/bundled/candidates.py."""
    spec = importlib.util.spec_from_file_location("candidates", ROOT / "benchmarks" / "bundled" / "candidates.py")
    module = sys.modules["candidates"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["candidates"]


@pytest.fixture(scope="module")
def pair():
    source = WorldSource.of("worlds:1:96", "val")
    return source.read(source.keys[0])


@pytest.fixture
def sam():
    torch.manual_seed(2)
    model = build_small_sam(
        SamConfig(64, 8, (4, 4, 8, 8), (1, 1, 1, 1), embed_dim=16, fused_depth=1, heads=2, mlp_dim=16)
    )
    for parameter in model.parameters():
        parameter.data *= 1.5
    return model.eval()


@pytest.mark.parametrize(("pred_iou", "stability"), [(-1.0, 0.0), (-1.0, 0.6), (0.05, 0.3)])
def test_candidates_are_those_of_automatic_generation(bundled, sam, pair, pred_iou, stability):
    found = bundled.candidates(sam, pair.sharp, pair.masks, side=5)
    assert found.predicted.shape == (75,)
    settings = {"points_per_side": 5, "pred_iou_thresh": pred_iou, "stability_score_thresh": stability}
    masks, _ = MaskGenerator(sam, **settings).generate(pair.sharp)
    if pred_iou < 0:  # generation takes a threshold of 0 or less for none
        pred_iou = -np.inf
    assert found.generated(pred_iou, stability) == match(mask_iou(masks, pair.masks))


def test_calibration_changes_scores_and_no_mask(bundled, sam, pair):
    before = bundled.candidates(sam, pair.sharp, pair.masks, 5, (1.0, 3.0))
    Calibration(0.5, 0.1, 3.0).apply(sam)
    after = bundled.candidates(sam, pair.sharp, pair.masks, 5)
    assert after.predicted == pytest.approx(0.5 * before.predicted + 0.1, abs=1e-4)
    assert after.stability[:, 0] == pytest.approx(before.stability[:, 1], abs=1e-3)
    assert after.ious == pytest.approx(before.ious, abs=1e-3)
    assert np.ptp(before.stability[:, 1] - before.stability[:, 0]) > 0

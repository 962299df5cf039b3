"""The weights the package carries do what their cards say, measured on little; all figures are in benchmarks/."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from places import ROOT
from segment_anything import SamPredictor

from samdeblur.evaluation.masks.matching import distinct, mask_iou, match
from samdeblur.evaluation.metrics.psnr_ssim import psnr
from samdeblur.models import deblur, load_network, load_sam, local_pooling
from samdeblur.models.checkpoints.public import BUNDLED
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator, open_source

RESULTS = ROOT / "benchmarks" / "results"


def test_they_are_small():
    assert sum(file.stat().st_size for file in BUNDLED.glob("*.safetensors")) < 12e6


@pytest.mark.parametrize("name", ["sam", "nafnet"])
def test_cards_are_of_these_weights_and_quote_what_was_measured(name):
    card = (BUNDLED / f"{name}.md").read_text()
    assert hashlib.sha256((BUNDLED / f"{name}.safetensors").read_bytes()).hexdigest() in card
    measured = json.loads((RESULTS / f"bundled_{name}.json").read_text())
    rows = measured["sharp"] if name == "sam" else measured["worlds, test"]
    quoted = ["recall at 0.5", "recall at 0.75", "precision at 0.5"] if name == "sam" else ["PSNR blurred", "gain dB"]
    for figure in quoted:
        assert f"{rows[figure]:.2f}" in card, figure


@pytest.fixture(scope="module")
def sam():
    return load_sam("bundled")


@pytest.fixture(scope="module")
def worlds():
    source = open_source("worlds:4", "test")
    return [source.read(key) for key in source.keys]


def test_sam_finds_the_object_under_a_point(sam, worlds):
    predictor, ious = SamPredictor(sam), []
    for world in worlds:
        predictor.set_image(world.sharp)
        for mask in world.masks.to_masks()[:8]:
            inside = np.flatnonzero(mask)
            row, column = divmod(int(inside[len(inside) // 2]), mask.shape[1])
            found, _, _ = predictor.predict(np.array([[column, row]]), np.array([1]))
            ious.append(((found & mask).sum(axis=(1, 2)) / (found | mask).sum(axis=(1, 2))).max())
    assert np.mean(ious) > 0.3


def test_sam_generates_masks_that_are_there(sam, worlds):
    generator = MaskGenerator(sam, **BUNDLED_SETTINGS)
    found = [match(mask_iou(generator.generate(world.sharp)[0], world.masks)) for world in worlds[:2]]
    assert sum(m.at_50 for m in found) >= 0.15 * sum(m.true for m in found)


def test_sam_finds_things_in_a_photograph(sam):
    source = open_source("sample", "test")
    masks, records = MaskGenerator(sam, **BUNDLED_SETTINGS).generate(source.read("coffee-103").sharp)
    assert len(distinct(masks)) >= 5
    assert records["predicted_iou"].min() >= BUNDLED_SETTINGS["pred_iou_thresh"]


def test_nafnet_deblurs_worlds_and_photographs_it_never_saw(worlds):
    network = load_network("bundled")
    source = open_source("sample", "test")
    photographs = [source.read(key) for key in ("chelsea-101", "coffee-105")]
    for pairs in (worlds[:2], photographs):
        gains = [psnr(deblur(network, pair.blurred), pair.sharp) - psnr(pair.blurred, pair.sharp) for pair in pairs]
        assert np.mean(gains) > 0.3


def test_nafnet_leaves_sharp_images_sharp(worlds):
    network = local_pooling(load_network("bundled"), load_network("bundled").train_size)
    assert all(psnr(deblur(network, world.sharp), world.sharp) > 40 for world in worlds[:2])

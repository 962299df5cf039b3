"""Folders of transformers: the masks of the generators of segment-anything and sam2 over the same models."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from sam_families import (
    around_points,
    compared,
    hq_model_of_transformers,
    padded_generator,
    point_type,
    sam3_model_of_transformers,
    sam_model_of_transformers,
    stretched_generator,
)

from samdeblur.models import CheckpointError
from samdeblur.pipeline import MaskGenerator, Weights
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.speed import EXACT

transformers = pytest.importorskip("transformers", reason="the extra `segmenters` is not installed")

CPU = torch.device("cpu")
IMAGE_SIZES = {"astronaut": (97, 96), "chelsea": (75, 113), "coffee": (131, 97), "rocket": (64, 160)}
ALL = {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0}
SETTINGS = {
    "everything passes": {**ALL, "box_nms_thresh": 0.99},
    "some pass": {"pred_iou_thresh": 0.02, "stability_score_thresh": 0.2},
    "nothing passes": {"pred_iou_thresh": 1.0, "stability_score_thresh": 1.0},
    "crops": {**ALL, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
}


@pytest.fixture(scope="module")
def images():
    return [
        cv2.resize(getattr(skimage.data, name)()[..., :3], (width, height), interpolation=cv2.INTER_AREA)
        for name, (height, width) in IMAGE_SIZES.items()
    ]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["sam", "sam-hq"])
def test_padding_models_give_the_masks_of_segment_anythings_generator_over_them(
    random_sam, images, family, settings, tmp_path
):
    small = hq_model_of_transformers() if family == "sam-hq" else sam_model_of_transformers(smooth(random_sam(seed=3)))
    small.save_pretrained(tmp_path)
    model = open_model(tmp_path, CPU, EXACT)
    around_points(model._model.mask_decoder, point_type(model._model))
    generator, counts = MaskGenerator(model, points_per_side=5, **settings), []
    for image in images:
        theirs = padded_generator(model._model, points_per_side=5, **settings)
        with torch.no_grad():
            counts.append(compared(theirs.generate(image), generator.generate(image)))
    assert (sum(counts) > 0) is (settings["pred_iou_thresh"] < 1)
    assert (model.family, Weights.of_sam(str(tmp_path)).family) == (family, family)


def smooth(sam):
    with torch.no_grad():
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(0.5)
    return sam


@torch.inference_mode()
def test_a_sam_model_gives_nearly_the_logits_of_segment_anything_with_its_weights(random_sam, images, tmp_path):
    """The library computes attention in another order, so floats differ in their last digits."""
    sam = smooth(random_sam(seed=3))
    sam_model_of_transformers(sam).save_pretrained(tmp_path)
    model = open_model(tmp_path, CPU, EXACT)
    points = np.random.default_rng(0).uniform(0, 60, (40, 2))
    for image in images:
        (logits, iou), (other_logits, other_iou) = (
            of.decode(of.encode([image])[0], points) for of in (model, OriginalSam(sam))
        )
        assert torch.allclose(logits, other_logits, atol=1e-4, rtol=1e-4)
        assert torch.allclose(iou, other_iou, atol=1e-4)
        assert logits.std() > 0.01


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_sam_3_tracker_gives_the_masks_of_the_generator_of_sam_2_over_it(images, settings, tmp_path):
    pytest.importorskip("sam2.automatic_mask_generator", reason="the extra `segmenters` is not installed")
    sam3_model_of_transformers().save_pretrained(tmp_path)
    model = open_model(tmp_path, CPU, EXACT)
    around_points(model._model.mask_decoder, point_type(model._model))
    generator, counts = MaskGenerator(model, points_per_side=5, **settings), []
    for image in images:
        theirs = stretched_generator(model, generator)
        with torch.no_grad():
            counts.append(compared(theirs.generate(image), generator.generate(image)))
    assert (sum(counts) > 0) is (settings["pred_iou_thresh"] < 1)
    assert (model.family, Weights.of_sam(str(tmp_path)).family) == ("sam3", "sam3")


def test_what_models_are_given_is_nearly_what_the_processors_of_the_library_give(random_sam, images, tmp_path):
    """Those resize by other code: the pixels differ by a grey value or two."""
    sam_model_of_transformers(random_sam()).save_pretrained(tmp_path)
    mine = open_model(tmp_path, CPU, EXACT)
    seen = []
    mine._model.get_image_embeddings = lambda batch: seen.append(batch) or batch
    processor = transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    for image in images:
        mine.encode([image])
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        assert theirs.shape == seen[-1].shape
        assert (theirs - seen[-1]).abs().mean() < 0.02


@pytest.fixture
def folder(random_sam, tmp_path):
    sam_model_of_transformers(random_sam()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_statistics_of_the_preprocessor_are_taken(folder, images):
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    seen = []
    model = open_model(folder, CPU, EXACT)
    model._model.get_image_embeddings = lambda batch: seen.append(batch) or batch
    model.encode([np.full((64, 64, 3), 51, np.uint8)])
    assert torch.allclose(seen[0].mean((0, 2, 3)), torch.tensor([0.1, 0.0, -0.1]), atol=1e-6)


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json, which a folder of transformers has; give a file"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors beside config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json: not a mapping"),
        (lambda f: _config(f, model_type="clip"), "model_type 'clip', which is not supported here; those that are"),
        (lambda f: _config(f, model_type="sam_hq"), "SamHQModel"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "not a SamModel of transformers"),
        (lambda f: (f / "preprocessor_config.json").write_text('{"image_std": 0}'), "are not three numbers"),
        (lambda f: shutil.copy(f / "model.safetensors", f / "other.safetensors"), None),
    ],
)
def test_folders_that_do_not_load_are_refused_by_what_is_wrong(folder, change, words):
    before = Weights.of_sam(str(folder))
    change(folder)
    if words is None:
        assert Weights.of_sam(str(folder)).sha256 != before.sha256
        return
    with pytest.raises(CheckpointError, match=words):
        open_model(Weights.of_sam(str(folder)).check(), CPU, EXACT)


def test_weights_of_half_precision_are_computed_in_float32(folder, random_sam):
    sam_model_of_transformers(random_sam()).half().save_pretrained(folder)
    model = open_model(folder, CPU, EXACT)
    assert {parameter.dtype for parameter in model._model.parameters()} == {torch.float32}


def test_one_file_of_a_folder_is_refused_with_the_folder_as_advice(folder):
    with pytest.raises(CheckpointError, match=r"weights of transformers; give their folder"):
        Weights.of_sam(str(folder / "model.safetensors"))

"""Segment Anything 2: mask for mask what the package's own generator gives, from its checkpoints and from folders."""

from __future__ import annotations

import inspect
import sys

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from samdeblur.models import CheckpointError
from samdeblur.models.networks.sam2 import PUBLIC, sizes
from samdeblur.pipeline import MaskGenerator, PrepSettings, SegmenterMissing, SettingsError, Weights
from samdeblur.pipeline.job.recipe import load_stages
from samdeblur.pipeline.segmenters.families.recognise import family_of, open_model
from samdeblur.pipeline.segmenters.families.sam2 import SAM2_DEFAULTS, Sam2
from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS
from samdeblur.pipeline.segmenters.speed import EXACT, Speed

pytest.importorskip("sam2", reason="the extra `segmenters` is not installed")
from sam_families import (
    SAM2_YAML,
    around_points,
    compared,
    generated,
    localised_sam2,
    sam2_generator,
    sam2_model_of_transformers,
    small_sam2,
)

CPU = torch.device("cpu")
IMAGE_SIZES = {
    "astronaut": (97, 96),
    "chelsea": (75, 113),
    "coffee": (131, 97),
    "rocket": (64, 160),
    "retina": (33, 150),
}
ALL = {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0}
SETTINGS = {
    "everything passes": {**ALL, "box_nms_thresh": 0.99},
    "some pass": {"pred_iou_thresh": 0.02, "stability_score_thresh": 0.2},
    "nothing passes": {"pred_iou_thresh": 1.0},
    "crops": {**ALL, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "another threshold": {**ALL, "mask_threshold": 0.7},
    "masks again": {**ALL, "use_m2m": True, "points_per_batch": 10},
    "one mask to a point": {**ALL, "multimask_output": False},
    "both": {**ALL, "use_m2m": True, "multimask_output": False},
    "batches of a point": {"points_per_batch": 1, "pred_iou_thresh": 0.01, "stability_score_thresh": 0.1},
}


@pytest.fixture(scope="module")
def images():
    return {
        name: cv2.resize(getattr(skimage.data, name)()[..., :3], (width, height), interpolation=cv2.INTER_AREA)
        for name, (height, width) in IMAGE_SIZES.items()
    }


@pytest.fixture(scope="module")
def sam():
    return localised_sam2(small_sam2())


@pytest.fixture(scope="module")
def folder(sam, tmp_path_factory):
    pytest.importorskip("transformers", reason="the extra `segmenters` is not installed")
    path = tmp_path_factory.mktemp("transformers")
    sam2_model_of_transformers(sam.state_dict()).save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """As the package publishes them, with the configuration beside it, since its sizes are of no public model."""
    torch.save({"model": small_sam2().state_dict()}, tmp_path / "small.pt")
    (tmp_path / "small.yaml").write_text(SAM2_YAML)
    return tmp_path / "small.pt"


def reference(sam, settings, image):
    generator = sam2_generator(sam, points_per_side=5, **settings)
    return generated(generator, image)


@pytest.mark.parametrize("name", SETTINGS)
def test_masks_and_records_are_those_of_the_packages_generator_to_the_bit(sam, images, name):
    generator = MaskGenerator(Sam2(sam), points_per_side=5, **SETTINGS[name])
    counts = [compared(reference(sam, SETTINGS[name], image), generator.generate(image)) for image in images.values()]
    assert (sum(counts) > 2 * len(counts)) is (name != "nothing passes"), counts


@pytest.mark.parametrize("name", ["everything passes", "nothing passes", "crops", "masks again", "both"])
def test_a_folder_of_transformers_gives_the_masks_of_the_packages_generator(sam, folder, images, name):
    model = open_model(folder, CPU, EXACT)
    around_points(model._model.mask_decoder, sam.sam_prompt_encoder.point_embeddings[1].weight.detach())
    generator = MaskGenerator(model, points_per_side=5, **SETTINGS[name])
    some = list(images.values())[:4]
    counts = [compared(reference(sam, SETTINGS[name], image), generator.generate(image), 1e-5) for image in some]
    assert (sum(counts) > 2 * len(counts)) is (name != "nothing passes")


def test_defaults_are_those_of_the_packages_generator(sam):
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(SAM2AutomaticMaskGenerator).parameters.items()
        if name not in ("model", "output_mode", "kwargs")
    }
    assert theirs == MaskGenerator(Sam2(sam)).settings == SAM_SETTINGS | SAM2_DEFAULTS


def test_a_checkpoint_is_recognised_and_its_recipe_says_what_it_is(checkpoint, images):
    weights = Weights.of_sam(str(checkpoint))
    loose = {"points_per_side": 3, "box_nms_thresh": 1.0, **ALL}
    settings = PrepSettings(sam=weights, sam_settings=loose, device="cpu")
    stages = load_stages(settings, CPU)
    recipe = settings.recipe()["segmenter"]
    assert recipe == stages.segmenter.recipe()
    assert (weights.family, recipe["name"], recipe["use_m2m"], recipe["points_per_side"]) == ("sam2", "sam2", False, 3)
    theirs = sam2_generator(small_sam2(), **loose).generate(images["chelsea"])
    assert compared(theirs, stages.segmenter.segment(images["chelsea"])) > 2
    (checkpoint.parent / "small.yaml").write_text(SAM2_YAML + "\n# other\n")
    with pytest.raises(CheckpointError, match="changed since"):
        load_stages(settings, CPU)


@pytest.mark.parametrize("kind", ["module.", "fp16", "no videos"])
def test_checkpoints_of_other_trainers_load(checkpoint, kind, images):
    state = {f"module.{key}" if kind == "module." else key: value for key, value in small_sam2().state_dict().items()}
    if kind == "fp16":
        state = {key: value.half() for key, value in state.items()}
    if kind == "no videos":
        state = {key: value for key, value in state.items() if "mem" not in key or key == "no_mem_embed"}
    torch.save({"state_dict": state, "epoch": 3}, checkpoint)
    model = open_model(checkpoint, CPU, EXACT)
    assert MaskGenerator(model, points_per_side=2, **ALL).generate(images["coffee"])[0].n_masks > 0
    assert {parameter.dtype for parameter in model._sam.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, _: state.pop("sam_mask_decoder.iou_token.weight"), "missing sam_mask_decoder.iou_token"),
        (lambda state, _: state.update(no_mem_embed=torch.zeros(1, 1, 8)), "num_heads must divide"),
        (lambda _, yaml: yaml.unlink(), r"blocks \[1, 1, 2, 1\] of 16 channels are of no public model; put the .yaml"),
        (lambda _, yaml: yaml.write_text("model: 3"), r"small\.yaml: not the configuration of a Segment Anything 2"),
        (lambda state, _: state.clear(), "not a .*checkpoint"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(checkpoint, change, words):
    state = dict(small_sam2().state_dict())
    change(state, checkpoint.parent / "small.yaml")
    torch.save({"model": state}, checkpoint)
    with pytest.raises(CheckpointError, match=words):
        open_model(checkpoint, CPU, EXACT)


def test_sizes_of_the_public_models_are_read_off_their_weights():
    from sam2.modeling.backbones.hieradet import Hiera

    for (channels, stages), (_, config) in PUBLIC.items():
        if channels > 100:  # whose weights are large
            continue
        trunk = Hiera(channels, config.num_heads, stages=stages, global_att_blocks=config.global_att_blocks)
        state = {f"image_encoder.trunk.{key}": value for key, value in trunk.state_dict().items()}
        assert sizes(state) == (channels, stages)


def test_attention_of_another_kind_is_refused_where_there_is_none(checkpoint):
    with pytest.raises(SettingsError, match="--sdpa"):
        open_model(checkpoint, CPU, Speed(sdpa=True))


def test_bf16_gives_nearly_as_many_masks(checkpoint, images):
    exact, fast = (
        MaskGenerator(open_model(checkpoint, CPU, speed), points_per_side=3, **ALL, box_nms_thresh=1.0)
        for speed in (EXACT, Speed("bfloat16"))
    )
    counts = [generator.generate(images["rocket"])[0].n_masks for generator in (exact, fast)]
    assert abs(counts[0] - counts[1]) <= 3 < counts[0]


def test_images_through_the_encoder_together(checkpoint, images):
    generator = MaskGenerator(open_model(checkpoint, CPU, EXACT), points_per_side=3, **ALL)
    images = [images["coffee"], images["rocket"]]
    for image, whole in zip(images, generator.embed(images), strict=True):
        alone, together = generator.generate(image), generator.generate(image, whole)
        assert together[0].n_masks == alone[0].n_masks
        assert np.allclose(together[1]["predicted_iou"], alone[1]["predicted_iou"], atol=1e-4)


def test_a_family_without_these_settings_refuses_them():
    assert family_of(Weights.of_sam("bundled").check()) == "sam"
    with pytest.raises(TypeError, match="use_m2m"):
        load_stages(PrepSettings(sam=Weights.of_sam("bundled"), sam_settings={"use_m2m": True}), CPU)


@pytest.mark.parametrize("package", ["sam2", "transformers"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(checkpoint, folder, package, monkeypatch):
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SegmenterMissing, match=rf"needs the package {package}: pip install 'samdeblur\[segmenters\]'"):
        open_model(checkpoint if package == "sam2" else folder, CPU, EXACT)

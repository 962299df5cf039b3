from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samdeblur.pipeline import MaskGenerator, PrepSettings, Weights
from samdeblur.pipeline.job.worker import read_ahead
from samdeblur.pipeline.segmenters.speed import Speed
from samdeblur.pipeline.sources.base import BadImage
from samdeblur.storage.writing.compare import best_iou

SETTINGS = {"points_per_side": 3, "pred_iou_thresh": -1.0, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0}


def outputs(sam, image):
    """What the network gives for an image and some points."""
    with torch.inference_mode():
        embedding = sam.image_encoder(sam.preprocess(image))
        points = torch.tensor([[[10.0, 20.0]], [[40.0, 50.0]]])
        sparse, dense = sam.prompt_encoder((points, torch.ones(2, 1, dtype=torch.int)), None, None)
        return embedding, *sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)


def test_fused_attention_is_the_same_function(random_sam):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    plain, fused = random_sam(), random_sam()
    before = outputs(plain, image)
    after = outputs(Speed(sdpa=True).prepare(fused), image)
    for mine, theirs in zip(after, before, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)
    assert any(module.forward.__name__ == "_encoder_attention" for module in fused.modules() if hasattr(module, "qkv"))


@pytest.mark.parametrize("speed", [Speed("bfloat16"), Speed(sdpa=True), Speed("bfloat16", sdpa=True)], ids=str)
def test_fast_masks_are_nearly_the_exact_ones(random_sam, random_image, speed):
    image = random_image(0, 50, 60)
    exact, _ = MaskGenerator(random_sam(), **SETTINGS).generate(image)
    fast, records = MaskGenerator(random_sam(), speed, **SETTINGS).generate(image)
    assert fast.n_masks == exact.n_masks == len(records["area"]) > 10
    assert np.median(best_iou(exact, fast)) > 0.9


def test_images_through_the_encoder_together_give_nearly_the_same_masks(random_sam, random_image):
    images = [random_image(0, 50, 60), random_image(1, 64, 40), random_image(2, 30, 30)]
    generator = MaskGenerator(random_sam(), **SETTINGS)
    for image, whole in zip(images, generator.embed(images), strict=True):
        exact, together = generator.generate(image)[0], generator.generate(image, whole)[0]
        assert together.n_masks == exact.n_masks
        assert np.median(best_iou(exact, together)) > 0.99


def test_fused_attention_never_has_all_tokens_against_all(random_sam):
    """4096 x 4096 for each head of a public model. Plain attention has, which shows that the test sees it."""
    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            shapes.update(
                tuple(t.shape[-2:]) for t in tree_leaves(found) if isinstance(t, torch.Tensor) and t.dim() > 1
            )
            return found

    image = torch.rand(1, 3, 128, 128)
    for speed, dense in ((Speed(), True), (Speed(sdpa=True), False)):
        encoder = speed.prepare(random_sam(128)).image_encoder
        shapes.clear()
        with torch.inference_mode(), Watch():
            encoder(image)
        assert ((64, 64) in shapes) == dense


def test_the_encoder_and_the_decoder_are_compiled(random_sam, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    sam = random_sam()
    assert Speed(compile=True).prepare(sam) is sam
    assert [function.__name__ for function in compiled] == ["forward", "predict_masks"]


def test_the_recipe_says_how_the_network_computed():
    weights = Weights("sam.pth", "f" * 64)
    assert PrepSettings(sam=weights).recipe()["mode"] == "exact"
    recipe = PrepSettings(sam=weights, speed=Speed("bfloat16", sdpa=True)).recipe()
    assert recipe["mode"] == {"name": "tolerance", "precision": "bfloat16", "compile": False, "sdpa": True, "batch": 1}
    assert PrepSettings(speed=Speed("bfloat16")).recipe()["mode"] == "exact"  # superpixels have no network


def test_the_next_image_is_read_while_one_is_worked_on():
    begun, second = [], threading.Event()

    def read(key):
        begun.append(key)
        if key == "b":
            second.set()
        if key == "c":
            raise BadImage("c is damaged")
        return key

    reads = read_ahead(read, ["a", "b", "c"])
    assert next(reads)() == "a"
    assert second.wait(30)  # before it is asked for
    assert next(reads)() == "b"
    with pytest.raises(BadImage, match="damaged"):
        next(reads)()
    assert list(reads) == []
    assert begun == ["a", "b", "c"]

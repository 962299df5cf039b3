"""float32 has all its bits on a GPU too, and whoever wants fewer says so."""

from __future__ import annotations

import numpy as np
import pretended
import pytest
import torch

from samdeblur.models import NAFNet, computing, deblur, device_facts, load_sam, with_prior
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.job.worker import environment
from samdeblur.pipeline.segmenters.speed import Speed

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def flags():
    """tf32 in convolutions, in matrix products, repeatable kernels alone, kernels found by trial."""
    backends = torch.backends
    return (
        backends.cudnn.allow_tf32,
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
    )


@pytest.fixture(autouse=True)
def usual():
    """What torch begins with, whatever an earlier test left."""
    assert flags() == (True, False, False, False)
    yield
    assert flags() == (True, False, False, False)


def seen_in(module):
    found = []
    module.register_forward_pre_hook(lambda *_: found.append(flags()))
    return found


@pytest.mark.parametrize(
    ("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", False), ("float16", False)]
)
def test_an_image_is_deblurred_without_tf32_unless_it_is_asked_for(precision, tf32):
    with pretended.cuda():
        network = pretended.moved(with_prior(NAFNet(4, [1], 1, [1]), None).eval())
        found = seen_in(network.network.intro)
        deblur(network, IMAGE, precision=precision)
    assert [row[:2] for row in found] == [(tf32, tf32)]


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        (Speed(), (False, False, True, False)),
        (Speed(precision="tf32"), (True, True, False, False)),
        (Speed(precision="bfloat16"), (False, False, False, False)),
        (Speed(sdpa=True), (False, False, False, False)),
    ],
    ids=str,
)
def test_exact_masks_come_from_kernels_that_are_exact_and_repeatable(speed, expected):
    with pretended.cuda():
        sam = pretended.moved(load_sam("bundled"))
        encoder, decoder = seen_in(sam.image_encoder), seen_in(sam.mask_decoder)
        MaskGenerator(sam, speed, **BUNDLED_SETTINGS | {"points_per_side": 2}).generate(IMAGE)
    assert set(encoder) | set(decoder) == {expected}
    assert encoder
    assert decoder


def test_the_recipe_says_tf32():
    assert Speed(precision="tf32").recipe()["precision"] == "tf32"
    assert Speed().recipe() == "exact"


def test_flags_are_put_back_after_an_error():
    def failing():
        with pretended.cuda(), computing(pretended.CUDA, "tf32", repeatable=True):
            assert flags() == (True, True, True, False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def test_nothing_is_touched_for_a_cpu():
    with computing(torch.device("cpu"), "float32", repeatable=True):
        assert flags() == (True, False, False, False)


def test_versions_of_cuda_and_cudnn_are_in_the_environment():
    with pretended.cuda():
        found = device_facts(pretended.CUDA)
        assert found == {
            "device": "a pretended GPU",
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }
        assert environment(pretended.CUDA).items() > found.items()
    assert environment(torch.device("cpu"))["device"] == "cpu"

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from samdeblur.evaluation import restore as restoring
from samdeblur.evaluation.restore import Restored, Restorer
from samdeblur.evaluation.results import Inference
from samdeblur.models import MAPUnit, NAFNet, NotFinite, deblur, local_pooling, with_prior
from samdeblur.storage import AtomMap


class Odd(nn.Module):
    """Gives back what it is given, or nonsense where it is asked to; needs multiples of 64."""

    def __init__(self, nonsense) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.nonsense = nonsense

    def forward(self, image):
        return 1 - image + 3 * (image > 0.5) if self.nonsense(image) else image + self.weight


@pytest.fixture(scope="module")
def blurred():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(40, 220, (16, 20, 3), np.uint8), np.ones((40, 40, 1), np.uint8))  # 640 x 800


def restorer(nonsense, **inference):
    return Restorer(with_prior(Odd(nonsense), None), Inference(**inference))


def test_without_a_guard_it_is_deblur(random_masks):
    torch.manual_seed(0)
    network = with_prior(NAFNet(4, [1], 1, [1]), MAPUnit(), "default").eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    atoms = AtomMap.from_masks(random_masks(np.random.default_rng(1), 5, 50, 60))
    for inference in (Inference(), Inference(tile=32, overlap=8), Inference(precision="bfloat16"), Inference(tlc=16)):
        used = network if inference.tlc is None else local_pooling(network, inference.tlc)
        expected = deblur(used, image, atoms, inference.tile, inference.overlap or 0, inference.precision)
        found = Restorer(network, inference)(image, atoms)
        assert np.array_equal(found.image, expected)
        assert found[1:] == ((), "")


def test_what_is_not_suspicious_stays(blurred):
    found = restorer(lambda image: False, guard="tiled,input")(blurred, None)
    assert np.array_equal(found.image, blurred)
    assert found[1:] == ((), "")


def test_the_guard_flags_and_changes_nothing_unless_told_to(blurred):
    found = restorer(lambda image: True, guard="flag")(blurred, None)
    assert np.array_equal(found.image, restorer(lambda image: True)(blurred, None).image)
    assert found.flags
    assert found.fallback == ""


@pytest.mark.parametrize("guard", ["input", "tiled,input", "tlc-off,tiled,input"])
def test_the_input_stands_where_nothing_else_will_do(blurred, guard):
    found = restorer(lambda image: True, guard=guard)(blurred, None)
    assert np.array_equal(found.image, blurred)
    assert found.flags
    assert found.fallback == "input"


def test_tiles_help_where_only_large_images_collapse(blurred):
    found = restorer(lambda image: image.shape[-1] > 512, guard="tlc-off,tiled,input")(blurred, None)
    assert np.array_equal(found.image, blurred)
    assert found.fallback == "tiled"


def test_means_over_the_whole_image_help_where_local_ones_collapse(blurred, monkeypatch):
    def local(network, size):
        return with_prior(Odd(lambda image: True), None)

    monkeypatch.setattr(restoring, "local_pooling", local)
    found = restorer(lambda image: False, guard="tiled,tlc-off", tlc=64)(blurred, None)
    assert np.array_equal(found.image, blurred)
    assert found.fallback == "tlc-off"


def test_a_result_that_is_not_finite_is_replaced_or_refused(blurred):
    class Broken(Odd):
        def forward(self, image):
            return image / 0

    network = with_prior(Broken(None), None)
    found = Restorer(network, Inference(guard="input"))(blurred, None)
    assert np.array_equal(found.image, blurred)
    assert found.fallback == "input"
    with pytest.raises(NotFinite):
        Restorer(network, Inference(guard="flag"))(blurred, None)


def test_what_local_means_do_not_reach_is_said():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, image):
            return self.weight * image - image.mean((2, 3), keepdim=True)

    said = []
    Restorer(with_prior(Mean(), None), Inference(tlc=64), said.append)
    assert len(said) == 1
    assert said[0].startswith("--tlc: these still average over the whole image")
    assert Restored(np.zeros((1, 1, 3), np.uint8)).flags == ()

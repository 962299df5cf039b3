"""Validation during training keeps its device busy."""

from __future__ import annotations

import threading

import numpy as np
import pretended
import pytest
import torch

from samdeblur.evaluation import evaluate as evaluating
from samdeblur.evaluation.evaluate import score_images
from samdeblur.models import MAPUnit, NAFNet, with_prior


def test_validation_scores_on_the_device_of_the_network_and_finds_what_a_cpu_finds(store):
    network = with_prior(NAFNet(4, [1], 1, [1]), MAPUnit()).eval()
    expected = [(score.metrics, result) for score, result in score_images(network, store, store.keys)]
    compared = []
    with pretended.cuda(), pytest.MonkeyPatch.context() as patch:
        compare = evaluating.compare
        patch.setattr(evaluating, "compare", lambda *images: compared.append(images) or compare(*images))
        found = list(score_images(pretended.moved(network), store, store.keys))
    assert len(compared) == len(store.keys)
    assert all(isinstance(image, pretended.Pretended) for images in compared for image in images)
    for (score, result), (metrics, image) in zip(found, expected, strict=True):
        assert score.metrics == pytest.approx(metrics, rel=1e-9)
        assert np.array_equal(result, image)


def test_validation_reads_the_next_image_while_the_network_has_one(store, monkeypatch):
    """The network waits for the reading of the next; one after the other this never ends."""
    begun = {key: threading.Event() for key in store.keys}
    read = type(store).image

    def reading(self, name, key, *window):
        begun[key].set()
        return read(self, name, key, *window)

    class Waiting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.seen = 0

        def forward(self, image):
            self.seen += 1
            if self.seen < len(store.keys):
                assert begun[store.keys[self.seen]].wait(60)
            return image * self.weight

    monkeypatch.setattr(type(store), "image", reading)
    assert len(list(score_images(with_prior(Waiting(), None), store, store.keys))) == len(store.keys)

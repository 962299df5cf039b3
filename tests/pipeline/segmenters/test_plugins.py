"""Segmenters by name, and what those of other packages may do wrong."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from samdeblur.pipeline import Choice, PrepSettings, SegmenterError, SegmenterMissing, SettingsError, Weights
from samdeblur.pipeline.job.recipe import load_stages
from samdeblur.pipeline.segmenters.base import Embeds, Finds, Segmenter, TrueMasks
from samdeblur.pipeline.segmenters.plugins import checked
from samdeblur.pipeline.segmenters.sam import SamSegmenter
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter
from samdeblur.storage import AtomMap

CPU = torch.device("cpu")


class Halves:
    def __init__(self, device, at=0.5, recipe=None):
        self.at, self.told = at, recipe

    def recipe(self):
        return {"at": self.at} if self.told is None else self.told

    def segment(self, image):
        mask = np.arange(image.shape[1])[None] < self.at * image.shape[1]
        return AtomMap.from_masks(np.broadcast_to(mask, (1, *image.shape[:2])).copy()), {}


def fails(device):
    raise RuntimeError("its weights are gone")


def anything(device, **settings):
    return Halves(device)


@pytest.fixture(autouse=True)
def module(monkeypatch):
    module = types.ModuleType("some_plugin")
    module.Halves, module.fails, module.anything, module.number = Halves, fails, anything, lambda device: 3
    monkeypatch.setitem(sys.modules, "some_plugin", module)


def test_ours_come_through_the_same_door():
    opened = {
        SuperpixelSegmenter: PrepSettings(),
        TrueMasks: PrepSettings(true_masks=True),
        SamSegmenter: PrepSettings(sam=Weights.of_sam("bundled")),
        Halves: PrepSettings(plugin=Choice.of_plugin("some_plugin:Halves", {"at": 0.25})),
    }
    for kind, settings in opened.items():
        assert isinstance(load_stages(settings, CPU).segmenter, kind)
    assert isinstance(load_stages(opened[SamSegmenter], CPU).segmenter, Embeds)
    assert not isinstance(load_stages(opened[Halves], CPU).segmenter, Finds)


def test_the_recipe_has_the_name_and_every_setting_that_was_given():
    settings = PrepSettings(plugin=Choice.of_plugin("some_plugin:Halves", {"at": 0.25}))
    assert settings.recipe()["segmenter"] == {"name": "some_plugin:Halves", "at": 0.25}
    silent = Choice.of_plugin("some_plugin:anything", {"depth": [1, 2]})
    assert silent.recipe == {"name": "some_plugin:anything", "depth": [1, 2], "at": 0.5}


def test_superpixels_take_settings():
    plain, other = (Choice.of_plugin("superpixels", s) for s in ({}, {"n_segments": 40, "thresholds": [5, 9]}))
    assert plain.recipe == SuperpixelSegmenter().recipe()
    assert other.recipe == SuperpixelSegmenter(40, thresholds=(5.0, 9.0)).recipe()
    assert other.open(CPU) == SuperpixelSegmenter(40, thresholds=(5.0, 9.0))


@pytest.mark.parametrize(
    ("name", "settings", "kind", "words"),
    [
        ("superpixel", {}, SegmenterMissing, "no segmenter 'superpixel' .*; did you mean superpixels\\? Or name a"),
        (
            "regions-of-nobody",
            {},
            SegmenterMissing,
            "in the packages on .*; there are sam, superpixels.*\\. Or name a function as package.module:factory",
        ),
        ("no_such_package.masks:make", {}, SegmenterMissing, "no module 'no_such_package'; install it, or put"),
        ("some_plugin:nothing", {}, SegmenterMissing, "no 'nothing' in it"),
        ("some_plugin:Halves", {"att": 1}, SettingsError, "'att'; its settings: at, recipe"),
        ("some_plugin:fails", {}, SegmenterError, "RuntimeError: its weights are gone"),
        ("some_plugin:number", {}, SegmenterError, "an object of type int, which has no recipe"),
        ("some_plugin:Halves", {"recipe": 3}, SegmenterError, "its recipe is not a mapping of JSON values"),
        ("some_plugin:Halves", {"recipe": {"at": float("nan")}}, SegmenterError, "not a mapping of JSON values"),
        ("some_plugin:Halves", {"recipe": {"at": np.ones(3)}}, SegmenterError, "not a mapping of JSON values"),
        ("some_plugin:Halves", {"recipe": {"name": "sam"}}, SegmenterError, "the name 'sam' in its recipe is reserved"),
        ("superpixels", {"n_segments": 0}, SettingsError, "n_segments is 0"),
        ("superpixels", {"thresholds": [9, 5]}, SettingsError, "thresholds ascend"),
        ("superpixels", {"thresholds": "many"}, SettingsError, "its settings: n_segments 160"),
        ("true-masks", {"n": 1}, SettingsError, "its settings: none"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_name(name, settings, kind, words):
    with pytest.raises(kind, match=words):
        Choice.of_plugin(name, settings)


def test_an_encoder_batch_wants_an_encoder():
    with pytest.raises(SettingsError, match=r"no find\(\) and embed\(\)"):
        Choice.of_plugin("some_plugin:Halves", {}, together=True)


def test_a_worker_with_another_version_of_a_plugin_says_what_differs(monkeypatch):
    planned = Choice.of_plugin("some_plugin:Halves", {})
    monkeypatch.setattr(Halves, "recipe", lambda self: {"at": self.at, "version": 2})
    with pytest.raises(SegmenterMissing, match="version: was none, now 2"):
        planned.open(CPU)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "a NoneType instead of"),
        ((np.zeros((4, 6)), {}), "a tuple instead of"),
        ((AtomMap.from_masks(np.ones((1, 6, 4), bool)), {}), r"masks of \(6, 4\) for an image of \(4, 6\)"),
        ((AtomMap.from_masks(np.ones((1, 4, 6), bool)), {"score": [1.0]}), "no column 'score'; known: area"),
        ((AtomMap.from_masks(np.ones((1, 4, 6), bool)), {"predicted_iou": [1.0, 2.0]}), r"shape \(2,\) for 1 masks"),
    ],
)
def test_answers_that_are_none_are_named(found, words):
    with pytest.raises(SegmenterError, match=f"segmenter regions: .*{words}"):
        checked("regions", found, (4, 6))


def test_a_plugin_is_a_segmenter_to_a_type_checker():
    segmenter: Segmenter = Halves(CPU)
    atoms, records = checked("halves", segmenter.segment(np.zeros((4, 6, 3), np.uint8)), (4, 6))
    assert (atoms.n_masks, records) == (1, {})

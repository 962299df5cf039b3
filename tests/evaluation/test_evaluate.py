from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from samdeblur.evaluation import restore as restoring
from samdeblur.evaluation.evaluate import Evaluation, evaluate, restored_path
from samdeblur.evaluation.metrics import psnr_ssim as metrics
from samdeblur.evaluation.metrics.alignment import aligned_scores
from samdeblur.evaluation.metrics.perceptual import PerceptualMetric, PerceptualMetrics
from samdeblur.evaluation.ranks import Ranks
from samdeblur.evaluation.report.images import kept_images, read_strip, read_thumbnail
from samdeblur.evaluation.results import Conventions, Inference, SetResult, examples, worst_first
from samdeblur.evaluation.sets import LooseSet, Sample, StoreSet, UnusableImage
from samdeblur.models import CATPrior, MAPUnit, NAFNet, NotFinite, deblur, with_prior
from samdeblur.storage import AtomMap, StoreError
from samdeblur.train import score_images


class Brighter(nn.Module):
    """Adds a constant."""

    def __init__(self, constant):
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, image):
        return image + self.constant


def test_scores_are_the_metrics_of_the_input_and_of_the_result_of_each_image(store):
    found = list(score_images(with_prior(Brighter(10 / 255), None), store, store.keys[1:]))
    assert [score.key for score, _ in found] == store.keys[1:]
    for score, result in found:
        blurred, sharp = store.image("blurred", score.key), store.image("sharp", score.key)
        assert np.array_equal(result, np.clip(blurred.astype(int) + 10, 0, 255))
        assert score.metrics["psnr_blurred"] == pytest.approx(metrics.psnr(blurred, sharp), rel=1e-12)
        assert score.metrics["psnr"] == pytest.approx(metrics.psnr(result, sharp), rel=1e-12)
        for name in ("wang", "nafnet"):
            assert score.metrics[f"ssim_{name}_blurred"] == pytest.approx(metrics.ssim(blurred, sharp, name), rel=1e-9)
            assert score.metrics[f"ssim_{name}"] == pytest.approx(metrics.ssim(result, sharp, name), rel=1e-9)
        assert score.gain == score.metrics["psnr"] - score.metrics["psnr_blurred"] != 0


def test_a_network_with_a_prior_is_given_the_masks_and_another_is_not(store, monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = with_prior(NAFNet(4, [1], 1, [1]), CATPrior(), init="default").eval()
    key = store.keys[0]
    ((_, result),) = score_images(network, store, [key])
    blurred = store.image("blurred", key)
    assert np.array_equal(result, deblur(network, blurred, store.atoms(key)))
    with pytest.warns(UserWarning, match="no atoms given"):
        assert not np.array_equal(result, deblur(network, blurred))
    monkeypatch.setattr(type(store), "atoms", None)
    assert list(score_images(with_prior(Brighter(0.0), None), store, [key]))


def test_images_are_scored_in_tiles_when_asked(store):
    torch.manual_seed(0)
    network = with_prior(NAFNet(4, [1], 1, [1]), CATPrior(), init="default").eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("beta"):
                parameter.normal_()
    key = store.keys[0]
    ((_, result),) = score_images(network, store, [key], 16, 4)
    assert np.array_equal(result, deblur(network, store.image("blurred", key), store.atoms(key), 16, 4))
    ((_, whole),) = score_images(network, store, [key])
    assert not np.array_equal(result, whole)


# A whole evaluation

CPU = Ranks(torch.device("cpu"))


def task(folder, **changes):
    usual = {"sha256": "ab" * 32, "conventions": Conventions(), "shown_images": 0, "say": lambda line: None}
    return Evaluation(folder, **usual | changes)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_prior(NAFNet(4, [1], 1, [1]), MAPUnit(), init="default").eval()


class Noted:
    """A set that notes which images it gave."""

    def __init__(self, images, stop_at=None):
        self.images, self.given, self.stop_at = images, [], stop_at

    def __getattr__(self, name):
        return getattr(self.images, name)

    def masks(self, key, blurred):
        if len(self.given) == self.stop_at:
            raise KeyboardInterrupt
        self.given.append(key)
        return self.images.masks(key, blurred)


def test_a_set_is_scored_in_its_order_as_single_images_are(store, network, tmp_path):
    found = evaluate(network, StoreSet(store), Inference(), task(tmp_path), CPU)
    assert found.scores == tuple(score for score, _ in score_images(network, store, store.keys))
    assert (found.dataset, found.split, found.recipe) == ("toy", "train", store.header.fingerprint)
    assert found.unready == 0
    assert found.seconds > 0


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_an_evaluation_that_was_stopped_goes_on_and_finds_the_same(store, network, tmp_path, stop_at):
    whole = evaluate(network, StoreSet(store), Inference(), task(tmp_path / "whole"), CPU)
    with pytest.raises(KeyboardInterrupt):
        evaluate(network, Noted(StoreSet(store), stop_at), Inference(), task(tmp_path / "o"), CPU)
    again, counts = Noted(StoreSet(store)), []
    found = evaluate(network, again, Inference(), task(tmp_path / "o"), CPU, lambda *count: counts.append(count))
    assert again.given == store.keys[stop_at:]
    assert counts == [(done, 4) for done in range(stop_at, 5)]
    assert found.scores == whole.scores
    third = Noted(StoreSet(store))
    assert evaluate(network, third, Inference(), task(tmp_path / "o"), CPU).scores == whole.scores
    assert third.given == []


def test_scores_of_other_weights_or_settings_do_not_count(store, network, tmp_path):
    evaluate(network, StoreSet(store), Inference(), task(tmp_path), CPU)
    for inference, changes in ((Inference(tile=16, overlap=4), {}), (Inference(), {"sha256": "cd" * 32})):
        noted = Noted(StoreSet(store))
        evaluate(network, noted, inference, Evaluation(**vars(task(tmp_path)) | changes), CPU)
        assert noted.given == store.keys


def test_results_are_saved_as_png_below_the_names_of_their_images(store, network, tmp_path):
    found = evaluate(network, StoreSet(store), Inference(), task(tmp_path, save_images=True), CPU)
    for key in store.keys:
        path = restored_path(tmp_path, found.name, key)
        assert path.relative_to(tmp_path).parts[0] == "restored"
        assert path.relative_to(tmp_path).parts[2:] == ("s", f"{key[2:]}.png")
        expected = deblur(network, store.image("blurred", key), store.atoms(key))
        assert np.array_equal(cv2.imread(str(path))[..., ::-1], expected)


def test_saved_results_stay_in_their_folder_whatever_they_are_called(tmp_path):
    for key in ("../../x", "/x", "a/../../x", "a//b", ".", "..", "a\x00b"):
        path = restored_path(tmp_path, "../set", key)
        assert path.resolve().is_relative_to((tmp_path / "restored").resolve()), key
        assert ".." not in path.relative_to(tmp_path).parts
        assert "\0" not in str(path)


def test_blurred_images_alone_are_restored_and_have_no_metrics(store, network, tmp_path):
    segmented = []

    def segment(blurred):
        segmented.append(blurred)
        return AtomMap.from_masks(blurred[None, ..., 0] > 99), {}

    images = LooseSet(
        "phone", "blurred", "f" * 64, ["a"], lambda _: Sample(store.image("blurred", "s/0"), None), segment
    )
    found = evaluate(network, images, Inference(), task(tmp_path, save_images=True), CPU)
    assert found.scores[0].metrics == {}
    assert found.summary == {"images": 1}
    blurred = store.image("blurred", "s/0")
    expected = deblur(network, blurred, AtomMap.from_masks(blurred[None, ..., 0] > 99))
    assert np.array_equal(cv2.imread(str(restored_path(tmp_path, found.name, "a")))[..., ::-1], expected)
    assert len(segmented) == 1
    evaluate(with_prior(Brighter(0.0), None), images, Inference(), task(tmp_path / "none"), CPU)
    assert len(segmented) == 1  # a network that looks at no masks waits for none


def test_images_that_cannot_be_used_are_left_out_and_named(store, network, tmp_path):
    def read(key):
        if key == "bad":
            raise UnusableImage("bad.png: cannot be decoded")
        return Sample(store.image("blurred", key), store.image("sharp", key))

    said = []
    images = LooseSet(
        "mine", "test", "", ["bad", *store.keys], read, lambda blurred: (AtomMap.empty(blurred.shape[:2]), {})
    )
    found = evaluate(network, images, Inference(), task(tmp_path, say=said.append), CPU)
    assert [score.key for score in found.scores] == store.keys
    assert found.unready == 1
    assert said == ["mine test: bad is left out: bad.png: cannot be decoded"]


def test_an_output_that_is_not_finite_stops_and_what_was_scored_is_kept(store, tmp_path):
    class Broken(Brighter):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return image / 0 if self.calls == 3 else image

    with pytest.raises(NotFinite):
        evaluate(with_prior(Broken(0.0), None), StoreSet(store), Inference(), task(tmp_path), CPU)
    noted = Noted(StoreSet(store))
    noted.sample = lambda key: noted.given.append(key) or StoreSet(store).sample(key)
    evaluate(with_prior(Brighter(0.0), None), noted, Inference(), task(tmp_path), CPU)
    assert noted.given == store.keys[2:]


def test_a_store_of_which_nothing_is_ready_is_refused(tmp_path, make_store, pair):
    store = make_store(tmp_path / "empty.zarr", {"a": pair(0, 20, 20)}, pending=("a",))
    with pytest.raises(StoreError, match="no image is ready; finish the preparation"):
        StoreSet(store)


def test_mixed_precision_changes_little_and_is_another_evaluation(store, network, tmp_path):
    full = evaluate(network, StoreSet(store), Inference(), task(tmp_path), CPU)
    half = evaluate(network, StoreSet(store), Inference(precision="bfloat16"), task(tmp_path), CPU)
    for one, other in zip(full.scores, half.scores, strict=True):
        assert one.metrics["psnr"] != other.metrics["psnr"]
        assert one.metrics["psnr"] == pytest.approx(other.metrics["psnr"], abs=0.5)


def test_aligned_scores_are_of_aligned_images_and_say_so(store, network, tmp_path):
    conventions = Conventions(align="ecc")
    found = evaluate(network, StoreSet(store), Inference(), task(tmp_path, conventions=conventions), CPU)
    plain = evaluate(network, StoreSet(store), Inference(), task(tmp_path), CPU)
    for score, before in zip(found.scores, plain.scores, strict=True):
        key = score.key
        sides = [aligned_scores(store.image("blurred", key), store.image("sharp", key))]
        sides.append(
            aligned_scores(deblur(network, store.image("blurred", key), store.atoms(key)), store.image("sharp", key))
        )
        assert (score.metrics["psnr_blurred"], score.metrics["psnr"]) == tuple(side.psnr for side in sides)
        assert score.flags == (() if all(side.found for side in sides) else ("unaligned",))
        assert before.flags == ()
    assert found.scores != plain.scores


def test_more_metrics_are_asked_of_the_result(store, network, tmp_path):
    def brightness(result, sharp):
        return result.mean()[None] + (0 if sharp is None else sharp.mean())

    extra = PerceptualMetrics((PerceptualMetric("light", False, False, "mine 1", brightness),), torch.device("cpu"))
    found = evaluate(network, StoreSet(store), Inference(), task(tmp_path, extra=extra), CPU)
    for score, (_, result) in zip(found.scores, score_images(network, store, store.keys), strict=True):
        expected = (result.mean() + store.image("sharp", score.key).mean()) / 255
        assert score.metrics["light"] == pytest.approx(expected, rel=1e-5)
    assert found.summary["light"] == pytest.approx(np.mean([score.metrics["light"] for score in found.scores]))
    alone = LooseSet("d", "s", "", ["a"], lambda key: Sample(store.image("blurred", "s/0"), None), None)
    lone = evaluate(with_prior(Brighter(0.0), None), alone, Inference(), task(tmp_path, extra=extra), CPU)
    assert lone.summary == {"images": 1, "light": pytest.approx(store.image("blurred", "s/0").mean() / 255, rel=1e-5)}


def test_images_of_an_evaluation_before_do_not_stay(store, network, tmp_path):
    evaluate(network, StoreSet(store), Inference(), task(tmp_path, shown_images=4), CPU)
    name = SetResult("toy", "train", store.header.fingerprint, ()).name
    assert all(kept_images(tmp_path, name, key) for key in store.keys)
    found = evaluate(network, StoreSet(store), Inference(), task(tmp_path, shown_images=1, sha256="cd" * 32), CPU)
    kept = {key for key in store.keys if kept_images(tmp_path, name, key)}
    assert kept == {worst_first(found.scores)[0].key}
    assert all(read_thumbnail(tmp_path, name, key) for key in store.keys)
    evaluate(network, StoreSet(store), Inference(), task(tmp_path, shown_images=0, sha256="ef" * 32), CPU)
    assert not any(read_thumbnail(tmp_path, name, key) or kept_images(tmp_path, name, key) for key in store.keys)


# Work that is done once

evaluating = sys.modules["samdeblur.evaluation.evaluate"]


@pytest.fixture
def counted(monkeypatch):
    """How often the network was asked, and made ready."""
    calls = {"restored": 0, "ready": 0}
    restore, make = restoring.restore, evaluating.Restorer

    def counted_restore(*arguments):
        calls["restored"] += 1
        return restore(*arguments)

    def counted_restorer(*arguments):
        calls["ready"] += 1
        return make(*arguments)

    monkeypatch.setattr(restoring, "restore", counted_restore)
    monkeypatch.setattr(evaluating, "Restorer", counted_restorer)
    return calls


@pytest.fixture
def loose(pair):
    """loose(count) -> a set without a store, and the list of what was segmented for it."""

    def make(count):
        pairs = {f"{n:02d}": pair(n, 24, 32)[:2] for n in range(count)}
        segmented = []

        def segment(blurred):
            segmented.append(blurred)
            return AtomMap.from_masks(blurred[None, ..., 0] > 99), {"area": np.ones(1)}

        images = LooseSet("phone", "test", "f" * 64, list(pairs), lambda key: Sample(*pairs[key]), segment)
        return images, segmented

    return make


@pytest.mark.parametrize("shown", [0, 1, 3, 24])
def test_network_and_segmenter_see_each_image_once_however_many_the_report_shows(
    network, loose, counted, tmp_path, shown
):
    images, segmented = loose(9)
    found = evaluate(network, images, Inference(tlc=64), task(tmp_path, shown_images=shown), CPU)
    assert (len(segmented), counted) == (9, {"restored": 9, "ready": 1})
    worst = [score.key for score in worst_first(found.scores)][:shown]
    assert [key for key in images.keys if kept_images(tmp_path, found.name, key)] == sorted(worst)
    assert all("masks" in kept_images(tmp_path, found.name, key) for key in worst)
    assert all(bool(read_thumbnail(tmp_path, found.name, key)) == bool(shown) for key in images.keys)
    strips = [key for key in images.keys if read_strip(tmp_path, found.name, key)]
    assert strips == (sorted(score.key for _, score in examples(found.scores)) if shown else [])
    again = evaluate(network, images, Inference(tlc=64), task(tmp_path, shown_images=shown), CPU)
    assert again.scores == found.scores
    assert (len(segmented), counted) == (9, {"restored": 9, "ready": 1})


def test_more_images_than_before_are_made_and_no_others(network, loose, counted, tmp_path):
    images, segmented = loose(9)
    evaluate(network, images, Inference(), task(tmp_path, shown_images=2), CPU)
    shown = []
    task_of_five = task(tmp_path, shown_images=5, bar=lambda items, what: shown.append((len(items), what)) or items)
    found = evaluate(network, images, Inference(), task_of_five, CPU)
    assert shown == [(3, f"{found.name}: images of the report")]
    assert (len(segmented), counted["restored"]) == (12, 12)
    assert len([key for key in images.keys if kept_images(tmp_path, found.name, key)]) == 5


def test_a_network_without_a_prior_waits_for_no_masks_of_a_set_without_a_store(loose, counted, tmp_path):
    images, segmented = loose(3)
    found = evaluate(with_prior(Brighter(0.01), None), images, Inference(), task(tmp_path, shown_images=3), CPU)
    assert segmented == []
    assert all("masks" not in kept_images(tmp_path, found.name, key) for key in images.keys)


def test_resumed_evaluations_show_the_same_images_as_whole_ones(network, loose, tmp_path):
    images, _ = loose(9)
    whole = evaluate(network, images, Inference(), task(tmp_path / "whole", shown_images=3), CPU)
    for stop_at in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(network, Noted(images, stop_at), Inference(), task(tmp_path / "o", shown_images=3), CPU)
    evaluate(network, images, Inference(), task(tmp_path / "o", shown_images=3), CPU)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for kind in ("images", "thumbnails")
         for path in (tmp_path / name / kind).rglob("*") if path.is_file()}
        for name in ("whole", "o")
    ]  # fmt: skip
    assert files[0] == files[1]
    assert len(files[0]) == 3 * 4 + 9 + len(examples(whole.scores))


def test_an_image_that_changes_is_scored_anew_and_one_that_is_touched_is_not(network, store, counted, tmp_path):
    class Changing(Noted):
        stamps = dict.fromkeys(store.keys, "1")
        contents = dict.fromkeys(store.keys, "a")

        def stamp(self, key):
            return self.stamps[key]

        def content(self, key):
            return self.contents[key]

    images = Changing(StoreSet(store))
    evaluate(network, images, Inference(), task(tmp_path), CPU)
    images.stamps[store.keys[0]] = images.stamps[store.keys[1]] = "2"
    images.contents[store.keys[1]] = "b"
    images.given.clear()
    evaluate(network, images, Inference(), task(tmp_path), CPU)
    assert images.given == [store.keys[1]]
    asked = []
    images.content = lambda key: asked.append(key) or "a"
    images.given.clear()
    evaluate(network, images, Inference(), task(tmp_path), CPU)
    assert (images.given, asked) == ([], [])  # what was touched is known by its new stamp

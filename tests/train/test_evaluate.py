from __future__ import annotations

import csv
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from samdeblur.models import CATPrior, NAFNet, deblur, with_prior
from samdeblur.train import Results, Score, metrics, read_results, score_images, summarise
from samdeblur.train.evaluate import Inference, ResultsError, SetResult, write_results


def score(key, blurred, result):
    return Score(key, blurred, result, 0.5, 0.25, 0.75, 0.125)


SCORES = (
    score("a/1", 25.0, 30.0),
    score("a/2", 26.0, 22.0),
    score("b", math.inf, math.inf),
    score("c", 30.0, math.inf),
)
RESULTS = Results(
    "map-dropout",
    "runs/map/best.safetensors",
    "ab" * 32,
    (
        SetResult("GoPro", "test", "1" * 64, SCORES[:2], 20.5, 3),
        SetResult("été", "test-ood", "2" * 64, SCORES, None, 0),
    ),
)


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
        assert (score.psnr_blurred, score.psnr) == (metrics.psnr(blurred, sharp), metrics.psnr(result, sharp))
        for name in ("wang", "nafnet"):
            assert getattr(score, f"ssim_{name}_blurred") == metrics.ssim(blurred, sharp, name)
            assert getattr(score, f"ssim_{name}") == metrics.ssim(result, sharp, name)
        assert score.gain == score.psnr - score.psnr_blurred != 0


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


def test_a_summary_is_the_means_and_the_share_of_collapsed_images():
    summary = summarise(SCORES[:2])
    assert summary["images"] == 2
    assert summary["mcr"] == 0.5
    for name in (field.name for field in fields(Score) if field.name != "key"):
        assert summary[name] == pytest.approx(np.mean([getattr(score, name) for score in SCORES[:2]]))
    assert summarise(SCORES)["psnr"] == math.inf


def test_the_gain_of_two_perfect_images_is_zero():
    assert [score.gain for score in SCORES] == [5, -4, 0, math.inf]


def test_results_survive_being_written_and_read_infinite_psnr_too(tmp_path):
    write_results(RESULTS, tmp_path)
    assert read_results(tmp_path) == RESULTS
    assert read_results(tmp_path / "results.json") == RESULTS
    document = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN
    assert document["sets"][0]["summary"]["mcr"] == 0.5
    assert document["sets"][1]["images"][2]["psnr"] is None


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        (Inference(), ""),
        (Inference(tlc=256), "TLC 256"),
        (Inference(512, 64), "tiles 512/64"),
        (Inference(512, 0, 96), "TLC 96, tiles 512/0"),
    ],
    ids=str,
)
def test_results_keep_how_images_went_through_the_network(tmp_path, inference, words):
    results = replace(RESULTS, inference=inference)
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    assert str(inference) == words


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


def test_an_infinite_psnr_before_training_survives_too(tmp_path):
    results = replace(RESULTS, sets=(replace(RESULTS.sets[0], psnr_step_0=math.inf),))
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results


def test_the_csv_has_a_row_per_image_with_every_number(tmp_path):
    write_results(RESULTS, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(result, score) for result in RESULTS.sets for score in result.scores]
    assert len(rows) == len(expected) == 6
    for row, (result, score) in zip(rows, expected, strict=True):
        assert (row["dataset"], row["split"], row["key"]) == (result.dataset, result.split, score.key)
        assert all(float(row[field.name]) == getattr(score, field.name) for field in fields(Score)[1:])


IMAGE = {field.name: 1.0 for field in fields(Score)} | {"key": "a"}
SET = {"dataset": "d", "split": "s", "recipe": "f" * 64, "psnr_step_0": None, "unready": 0, "images": [IMAGE]}
DOCUMENT = {"method": "none", "weights": "w", "sha256": "0", "sets": [SET]}


def test_the_smallest_document_is_read(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(DOCUMENT))
    assert read_results(tmp_path).sets[0].scores[0].key == "a"


def _without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def _of_set(**changes):
    return DOCUMENT | {"sets": [SET | changes]}


MALFORMED = {
    "empty": "",
    "not JSON": "{",
    "not text": b"\xff\xfe\xfa",
    "a list": [],
    "a number": 3,
    "nothing in it": {},
    "no method": _without(DOCUMENT, "method"),
    "inference that is a number": DOCUMENT | {"inference": 3},
    "unknown inference": DOCUMENT | {"inference": {"tta": 8}},
    "a tile that is text": DOCUMENT | {"inference": {"tile": "512"}},
    "a tile that is true": DOCUMENT | {"inference": {"tile": True}},
    "no sets": _without(DOCUMENT, "sets"),
    "null sets": DOCUMENT | {"sets": None},
    "zero sets": DOCUMENT | {"sets": []},
    "a set that is a list": DOCUMENT | {"sets": [[1]]},
    "a set without a recipe": DOCUMENT | {"sets": [_without(SET, "recipe")]},
    "a recipe that is a number": _of_set(recipe=3),
    "zero images": _of_set(images=[]),
    "null images": _of_set(images=None),
    "an image that is a list": _of_set(images=[[1, 2]]),
    "an image without a score": _of_set(images=[_without(IMAGE, "psnr")]),
    "an image with an unknown score": _of_set(images=[IMAGE | {"lpips": 1.0}]),
    "a score that is text": _of_set(images=[IMAGE | {"psnr": "high"}]),
    "step 0 that is text": _of_set(psnr_step_0="high"),
}


@pytest.mark.parametrize("document", MALFORMED.values(), ids=MALFORMED)
def test_malformed_results_are_refused_by_name_in_one_line(tmp_path, document):
    path = tmp_path / "results.json"
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ResultsError, match=r"results\.json: not results of samdeblur-eval run") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_results_that_are_not_there_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone", tmp_path / "gone.json"):
        with pytest.raises(FileNotFoundError, match="no such results; write them with samdeblur-eval run"):
            read_results(path)

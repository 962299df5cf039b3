from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from samdeblur.evaluation.results import (
    Conventions,
    Inference,
    Results,
    ResultsError,
    Score,
    SetResult,
    read_results,
    summarise,
    write_results,
)


def score(key, blurred, result, **more):
    ssims = {"ssim_wang_blurred": 0.5, "ssim_wang": 0.25, "ssim_nafnet_blurred": 0.75, "ssim_nafnet": 0.125}
    return Score(key, {"psnr_blurred": blurred, "psnr": result, **ssims}, **more)


SCORES = (
    score("a/1", 25.0, 30.0),
    score("a/2", 26.0, 22.0, flags=("range", "colour"), fallback="input"),
    score("b", math.inf, math.inf),
    score("c", 30.0, math.inf),
)
RESULTS = Results(
    "map-dropout",
    "runs/map/best.safetensors",
    "ab" * 32,
    (
        SetResult("GoPro", "test", "1" * 64, SCORES[:2], Inference(), 20.5, 3, 1.25),
        SetResult("été", "test-ood", "2" * 64, SCORES, Inference(512, 64, 256, "bfloat16", "flag")),
        SetResult("holiday", "blurred", "", (Score("x"), Score("y"))),
    ),
    Conventions(),
    {"torch": "2.11.0", "device": "cpu"},
)


def test_a_summary_is_the_means_and_the_share_of_collapsed_images():
    summary = summarise(SCORES[:2])
    assert summary["images"] == 2
    assert summary["mcr"] == 0.5
    for name in SCORES[0].metrics:
        assert summary[name] == pytest.approx(np.mean([score.metrics[name] for score in SCORES[:2]]))
    assert summarise(SCORES)["psnr"] == math.inf
    assert summarise(SCORES[:2], collapse_db=4.0)["mcr"] == 0
    assert summarise(RESULTS.sets[2].scores) == {"images": 2}


def test_the_gain_of_two_perfect_images_is_zero():
    assert [score.gain for score in SCORES] == [5, -4, 0, math.inf]


def test_results_survive_being_written_and_read_infinite_psnr_too(tmp_path):
    write_results(RESULTS, tmp_path)
    assert read_results(tmp_path) == RESULTS
    assert read_results(tmp_path / "results.json") == RESULTS
    document = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN
    assert document["sets"][0]["summary"]["mcr"] == 0.5
    assert document["sets"][0]["timings"] == {"total": 1.25, "images_per_second": 1.6}
    assert document["sets"][1]["images"][2]["psnr"] is None
    assert document["conventions"] == asdict(Conventions())


def test_another_threshold_of_collapse_counts_when_results_are_read_again(tmp_path):
    strict = replace(
        RESULTS,
        sets=tuple(replace(found, collapse_db=5.0) for found in RESULTS.sets),
        conventions=Conventions(collapse_db=5.0),
    )
    write_results(strict, tmp_path)
    assert read_results(tmp_path) == strict
    assert read_results(tmp_path).sets[0].summary["mcr"] == 0


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        (Inference(), ""),
        (Inference(tlc=256), "TLC 256"),
        (Inference(512, 64), "tiles 512/64"),
        (Inference(512, 0, 96), "TLC 96, tiles 512/0"),
        (Inference(precision="float16", guard="input"), "float16, guard input"),
    ],
    ids=str,
)
def test_results_keep_how_images_went_through_the_network(tmp_path, inference, words):
    results = replace(RESULTS, sets=(replace(RESULTS.sets[0], inference=inference),))
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    assert str(inference) == words


def test_an_infinite_psnr_before_training_survives_too(tmp_path):
    results = replace(RESULTS, sets=(replace(RESULTS.sets[0], psnr_step_0=math.inf),))
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results


def test_the_csv_has_a_row_per_image_with_every_number(tmp_path):
    write_results(RESULTS, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(result, score) for result in RESULTS.sets for score in result.scores]
    assert len(rows) == len(expected) == 8
    for row, (result, score) in zip(rows, expected, strict=True):
        assert (row["dataset"], row["split"], row["key"]) == (result.dataset, result.split, score.key)
        assert {name: float(row[name]) for name in score.metrics} == score.metrics
        assert (row["flags"], row["fallback"]) == (" ".join(score.flags), score.fallback)
    assert rows[-1]["psnr"] == ""


IMAGE = {"key": "a", **dict.fromkeys(SCORES[0].metrics, 1.0)}
SET = {
    "dataset": "d",
    "split": "s",
    "recipe": "f" * 64,
    "psnr_step_0": None,
    "unready": 0,
    "inference": {},
    "images": [IMAGE],
}
DOCUMENT = {"method": "none", "weights": "w", "sha256": "0", "conventions": {}, "environment": {}, "sets": [SET]}


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
    "no sets": _without(DOCUMENT, "sets"),
    "null sets": DOCUMENT | {"sets": None},
    "zero sets": DOCUMENT | {"sets": []},
    "a set that is a list": DOCUMENT | {"sets": [[1]]},
    "a set without a recipe": DOCUMENT | {"sets": [_without(SET, "recipe")]},
    "a recipe that is a number": _of_set(recipe=3),
    "zero images": _of_set(images=[]),
    "null images": _of_set(images=None),
    "an image that is a list": _of_set(images=[[1, 2]]),
    "an image without a name": _of_set(images=[_without(IMAGE, "key")]),
    "images with other scores": _of_set(images=[IMAGE, _without(IMAGE, "psnr") | {"key": "b"}]),
    "a score that is text": _of_set(images=[IMAGE | {"psnr": "high"}]),
    "step 0 that is text": _of_set(psnr_step_0="high"),
    "inference that is a number": _of_set(inference=3),
    "unknown inference": _of_set(inference={"tta": 8}),
    "a tile that is text": _of_set(inference={"tile": "512"}),
    "a tile that is true": _of_set(inference={"tile": True}),
    "conventions that are a list": DOCUMENT | {"conventions": []},
    "an unknown convention": DOCUMENT | {"conventions": {"gamma": "2.2"}},
    "a threshold that is text": DOCUMENT | {"conventions": {"collapse_db": "3"}},
    "no environment": _without(DOCUMENT, "environment"),
    "flags that are numbers": _of_set(images=[IMAGE | {"flags": [3]}]),
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

"""samdeblur-eval run on stores and folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from samdeblur.evaluation.metrics.perceptual import PerceptualMetric, PerceptualMetrics
from samdeblur.models import NAFNet, load_network
from samdeblur.storage import open_store

# As the console script, but before image STOP it says so and waits.
WAITING = """
import os, sys
from samdeblur.evaluation import restore as restoring
restore, calls = restoring.restore, []

def waiting(*arguments):
    if len(calls) == int(os.environ["STOP"]):
        print("waiting", flush=True)
        sys.stdin.read()
    calls.append(1)
    return restore(*arguments)

restoring.restore = waiting
from samdeblur.cli.eval import main
main()
"""


@pytest.fixture
def trained(samdeblur, store, tiny, tmp_path):
    """A run whose network looks at masks."""
    assert samdeblur("train", store, *tiny, "--method", "map", "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def results_of(folder):
    """What results.json says, without what differs in time."""
    document = json.loads((folder / "results.json").read_text())
    for found in document["sets"]:
        found.pop("timings")
    return document


def test_a_folder_of_pairs_needs_no_store_where_no_masks_are_wanted(samdeblur, checkpoint, pairs, store, tmp_path):
    for name, place in (("folder", pairs), ("store", store)):
        assert samdeblur("eval", "run", checkpoint, place, "--out", tmp_path / name, "--report-images", 1).code == 0
    (loose,), (stored,) = (results_of(tmp_path / name)["sets"] for name in ("folder", "store"))
    assert loose["images"] == stored["images"]
    assert (loose["dataset"], loose["split"], loose["recipe"]) == ("pairs", "test", "")


@pytest.mark.parametrize(
    "way",
    [
        ("--sam", "sam.pth"),
        ("--sam", "sam.pth", "--refine", 2),
        ("--segmenter", "superpixels", "--refine", 3),
        ("--segmenter", "superpixels", "--set-segmenter", "n_segments=40"),
    ],
)
def test_masks_found_on_the_spot_are_those_of_a_preparation(
    samdeblur, trained, pairs, prep_run, random_sam, tmp_path, monkeypatch, way
):
    monkeypatch.chdir(tmp_path)
    torch.save(random_sam().state_dict(), "sam.pth")
    prepared = tmp_path / "sam.zarr"
    assert prep_run(pairs, prepared, *way, "--predeblur", "none").code == 0
    for name, *places in (("folder", pairs, *way), ("store", prepared)):
        done = samdeblur("eval", "run", trained, *places, "--out", tmp_path / name, "--report-images", 1)
        assert done.code == 0, done.err
    (loose,), (stored,) = (results_of(tmp_path / name)["sets"] for name in ("folder", "store"))
    assert loose == stored
    assert loose["recipe"] == open_store(prepared).header.fingerprint


@pytest.mark.parametrize(
    "options", [(), ("--save-images",), ("--tile", 128), ("--sam", "bundled"), ("--report-images", 0)]
)
def test_blurred_images_alone_have_no_scores_and_are_sent_to_restore(samdeblur, checkpoint, pairs, tmp_path, options):
    refused = samdeblur("eval", "run", checkpoint, pairs / "blur", *options, "--out", tmp_path / "o")
    assert refused.code == 2
    assert f"restore them with samdeblur-eval restore RUN {pairs / 'blur'} --out FOLDER" in refused.error
    assert not (tmp_path / "o").exists()


def test_one_image_is_sent_to_restore(samdeblur, checkpoint, pairs, tmp_path):
    refused = samdeblur("eval", "run", checkpoint, pairs / "blur/000.png", "--out", tmp_path / "o")
    assert (refused.code, "samdeblur-eval restore RUN" in refused.error) == (2, True)


def test_stores_and_folders_may_stand_beside_each_other(samdeblur, checkpoint, pairs, store, tmp_path):
    options = ("--out", tmp_path / "o", "--report-images", 0)
    assert samdeblur("eval", "run", checkpoint, store, pairs, *options).code == 0
    sets = results_of(tmp_path / "o")["sets"]
    assert [(found["dataset"], bool(found["recipe"])) for found in sets] == [("pairs", True), ("pairs", False)]


def test_without_a_segmenter_masks_cannot_be_found(samdeblur, trained, pairs, tmp_path):
    refused = samdeblur("eval", "run", trained, pairs, "--out", tmp_path / "o")
    assert refused.code == 2
    assert "give --sam bundled (or a checkpoint), or prepare a store" in refused.error
    assert not (tmp_path / "o").exists()


def test_a_segmenter_for_stores_alone_is_refused(samdeblur, trained, store, tmp_path):
    for option, value in (("--sam", "bundled"), ("--segmenter", "superpixels"), ("--refine", 2)):
        refused = samdeblur("eval", "run", trained, store, option, value, "--out", tmp_path / "o")
        assert (refused.code, f"{option} is for folders of images" in refused.error) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--segmenter", "superpixels", "--sam", "bundled"), "--sam needs --segmenter sam"),
        (("--sam", "bundled", "--set-segmenter", "a=1"), "--set-segmenter a: needs --segmenter"),
        (("--segmenter", "true-masks"), "only stores of worlds have them"),
        (("--segmenter", "superpixel"), "did you mean superpixels?"),
        (("--segmenter", "superpixels", "--set-segmenter", "b=1"), "segmenter superpixels: "),
    ],
)
def test_ways_to_find_masks_that_do_not_go_together_are_refused(samdeblur, trained, pairs, tmp_path, options, words):
    refused = samdeblur("eval", "run", trained, pairs, *options, "--out", tmp_path / "o")
    assert refused.code == 2
    assert words in refused.error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("place", ["nowhere", "nowhere.zarr", "empty"])
def test_places_where_nothing_is_are_refused(samdeblur, checkpoint, tmp_path, place):
    (tmp_path / "empty").mkdir()
    refused = samdeblur("eval", "run", checkpoint, tmp_path / place, "--out", tmp_path / "o")
    assert refused.code == 2
    assert place in refused.error
    assert not (tmp_path / "o").exists()


def test_an_image_that_cannot_be_used_is_named_and_left_out(samdeblur, checkpoint, pairs, tmp_path):
    (pairs / "blur/002.png").write_bytes(b"no image")
    done = samdeblur("eval", "run", checkpoint, pairs, "--out", tmp_path / "o", "--report-images", 0)
    assert done.code == 3
    assert "pairs test: 002 is left out:" in done.err
    assert "1 image could not be used" in done.err
    (found,) = results_of(tmp_path / "o")["sets"]
    assert (len(found["images"]), found["unready"]) == (4, 1)


@pytest.mark.parametrize("stop", [0, 2])
def test_killed_in_the_middle_and_run_again_it_finds_the_same(samdeblur, checkpoint, store, tmp_path, stop):
    def command(out):
        return ["run", str(checkpoint), str(store), "--out", str(out), "--report-images", "2", "--save-images"]

    assert samdeblur("eval", *command(tmp_path / "whole")).code == 0
    environment = os.environ | {"STOP": str(stop)}
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *command(tmp_path / "o")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"waiting\n", process.stderr.read()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "o/results.json").exists()
    assert samdeblur("eval", *command(tmp_path / "o")).code == 0
    assert results_of(tmp_path / "o") == results_of(tmp_path / "whole")
    assert (tmp_path / "o/results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()
    saved = [sorted((tmp_path / name / "restored").rglob("*.png")) for name in ("o", "whole")]
    assert [path.read_bytes() for path in saved[0]] == [path.read_bytes() for path in saved[1]]


def test_results_that_are_there_already_are_not_computed_again(samdeblur, checkpoint, store, tmp_path, monkeypatch):
    options = ("--out", tmp_path / "o", "--report-images", 0)
    assert samdeblur("eval", "run", checkpoint, store, *options).code == 0
    before = results_of(tmp_path / "o")
    monkeypatch.setattr(NAFNet, "forward", None)
    assert samdeblur("eval", "run", checkpoint, store, *options).code == 0
    assert results_of(tmp_path / "o") == before


def test_two_processes_find_what_one_finds(samdeblur, checkpoint, store, tmp_path):
    options = [str(checkpoint), str(store), "--report-images", "3", "--device", "cpu"]
    assert samdeblur("eval", "run", *options, "--out", tmp_path / "one").code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "samdeblur.cli.eval"]
    done = subprocess.run(
        [*torchrun, "run", *options, "--out", str(tmp_path / "two")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert results_of(tmp_path / "two") == results_of(tmp_path / "one")
    assert len(list((tmp_path / "two/journal").iterdir())) == 2


def test_saved_images_are_what_the_network_gives(samdeblur, checkpoint, store, tmp_path):
    options = ("--out", tmp_path / "o", "--report-images", 0, "--save-images")
    assert samdeblur("eval", "run", checkpoint, store, *options).code == 0
    network, opened = load_network(checkpoint), open_store(store)
    for path in (tmp_path / "o/restored").rglob("*.png"):
        blurred = torch.from_numpy(opened.image("blurred", path.stem)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = network(blurred)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(cv2.imread(str(path))[..., ::-1], expected)


def test_results_of_other_weights_are_not_written_over(samdeblur, checkpoint, store, tmp_path):
    options = (store, "--out", tmp_path / "o", "--report-images", 0)
    assert samdeblur("eval", "run", checkpoint, *options).code == 0
    before = results_of(tmp_path / "o")
    refused = samdeblur("eval", "run", "bundled", *options)
    assert (refused.code, "holds results of other weights (nafnet (none)," in refused.error) == (2, True), refused.error
    assert results_of(tmp_path / "o") == before


def test_alignment_other_metrics_and_the_threshold_of_collapse_reach_the_results(
    samdeblur, checkpoint, store, tmp_path, monkeypatch
):
    light = PerceptualMetric("light", False, False, "mine 1", lambda result, sharp: result.mean()[None])
    monkeypatch.setattr(
        "samdeblur.evaluation.metrics.perceptual.perceptual_metrics",
        lambda names, device: PerceptualMetrics((light,), device),
    )
    options = ("--align", "ecc", "--metric", "light", "--collapse-db", 0.25)
    for name, more in (("plain", ()), ("other", options)):
        done = samdeblur("eval", "run", checkpoint, store, *more, "--report-images", 0, "--out", tmp_path / name)
        assert done.code == 0, done.err
    plain, other = (results_of(tmp_path / name) for name in ("plain", "other"))
    assert (other["conventions"]["align"], other["conventions"]["collapse_db"]) == ("ecc", 0.25)
    assert "light" in other["sets"][0]["summary"]
    assert other["sets"][0]["summary"]["psnr"] != plain["sets"][0]["summary"]["psnr"]
    refused = samdeblur("eval", "table", tmp_path / "plain", tmp_path / "other")
    assert refused.code == 2


def test_a_metric_that_is_not_known_is_refused(samdeblur, checkpoint, store, tmp_path):
    refused = samdeblur("eval", "run", checkpoint, store, "--metric", "lpisp", "--out", tmp_path / "o")
    assert (refused.code, "lpi" in refused.error) == (2, True)
    assert not (tmp_path / "o").exists()

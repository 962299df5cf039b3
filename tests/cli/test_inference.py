"""samdeblur-eval run with --tile and --tlc."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from samdeblur.evaluation.results import Inference
from samdeblur.models import NAFNet
from samdeblur.pipeline.sources.layouts import LAYOUTS


@pytest.fixture
def checkpoint(tmp_path):
    """A network that is not the same at every place: its blocks do something."""
    torch.manual_seed(0)
    network = NAFNet(4, [1], 1, [1])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.normal_(0, 0.1)
    torch.save(network.state_dict(), tmp_path / "nafnet.pth")
    return tmp_path / "nafnet.pth"


@pytest.fixture
def evaluate(samdeblur, checkpoint, store, tmp_path):
    """evaluate(*options) -> what the results of the checkpoint on the store say; folders are named by the options."""

    def call(*options):
        out = tmp_path / ("results" + "".join(map(str, options)))
        done = samdeblur("eval", "run", checkpoint, store, "--report-images", 1, "--out", out, *options)
        assert done.code == 0, done.err
        return json.loads((out / "results.json").read_text()), done, out

    return call


def _scores(document):
    return [image["psnr"] for image in document["sets"][0]["images"]]


@pytest.mark.parametrize(
    ("options", "inference", "words"),
    [
        ([], {}, ""),
        (["--tile", 32], None, None),
        (["--tile", 32, "--overlap", 8], {"tile": 32, "overlap": 8}, "tiles 32/8"),
        (["--tlc"], {"tlc": 256}, "TLC 256"),
        (["--tlc", "off"], {}, ""),
        (["--tlc", "--train-size", 16], {"tlc": 16}, "TLC 16"),
        (["--tlc", "on", "--train-size", 16, "--tile", 32, "--overlap", 0], {"tile": 32, "overlap": 0, "tlc": 16},
         "TLC 16, tiles 32/0"),
        (["--precision", "bfloat16"], {"precision": "bfloat16"}, "bfloat16"),
    ],
    ids=str,
)  # fmt: skip
def test_results_say_how_images_went_through_the_network(
    samdeblur, checkpoint, store, tmp_path, options, inference, words
):
    done = samdeblur("eval", "run", checkpoint, store, "--report-images", 0, "--out", tmp_path / "o", *options)
    if words is None:  # the usual overlap is more than so small a tile
        assert (done.code, "overlap 64: must be less than the tile, 32" in done.error) == (2, True)
        assert not (tmp_path / "o").exists()
        return
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "o/results.json").read_text())
    assert document["sets"][0]["inference"] == asdict(Inference()) | inference
    assert document["method"] == "nafnet (none)"
    assert words in done.out


def test_tiles_and_local_means_change_scores_and_tables_tell_them_apart(samdeblur, evaluate):
    (plain, _, first), (tlc, _, second) = evaluate(), evaluate("--tlc", "--train-size", 16)
    tiles, _, third = evaluate("--tlc", "--train-size", 16, "--tile", 32, "--overlap", 8)
    assert _scores(plain) != _scores(tlc) != _scores(tiles)
    assert max(abs(a - b) for a, b in zip(_scores(plain), _scores(tlc), strict=True)) < 3
    table = samdeblur("eval", "table", first, second, third)
    assert table.code == 0
    for label in ("| nafnet (none) ", "| nafnet (none), TLC 16 ", "| nafnet (none), TLC 16, tiles 32/8 "):
        assert label in table.out


def test_tiles_larger_than_every_image_change_nothing(evaluate):
    assert _scores(evaluate("--tile", 128)[0]) == _scores(evaluate()[0])


def test_local_means_are_those_of_the_crops_a_run_was_trained_on(samdeblur, store, tiny, tmp_path):
    assert samdeblur("train", store, *tiny, "--method", "map", "--out", tmp_path / "run").code == 0
    options = ("--with-step-0", "--tlc", "--out", tmp_path / "o")
    assert samdeblur("eval", "run", tmp_path / "run", store, *options).code == 0
    document = json.loads((tmp_path / "o/results.json").read_text())
    assert document["sets"][0]["inference"]["tlc"] == 32
    assert document["method"] == "map"
    assert document["sets"][0]["psnr_step_0"] is not None


@pytest.mark.parametrize(("dataset", "local"), [("GoPro", 256), ("gopro", 256), ("REDS", None)])
def test_of_itself_tlc_is_for_gopro_alone(
    samdeblur, checkpoint, pairs, prep_run, tmp_path, dataset, local, monkeypatch
):
    monkeypatch.setitem(LAYOUTS, "gopro", replace(LAYOUTS["gopro"], published={"test": 5}))
    assert prep_run(pairs, tmp_path / "s.zarr", "--dataset", dataset).code == 0
    done = samdeblur("eval", "run", checkpoint, tmp_path / "s.zarr", "--report-images", 0, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "o/results.json").read_text())
    assert document["sets"][0]["inference"]["tlc"] == local


@pytest.mark.parametrize("as_store", [True, False])
def test_a_set_that_only_looks_like_gopro_is_named_by_its_place_and_has_no_tlc(
    samdeblur, checkpoint, pairs, prep_run, tmp_path, as_store
):
    place = tmp_path / "mine"
    (place / "test").mkdir(parents=True)
    pairs.rename(place / "test/GOPR0001_01_00")
    if as_store:
        assert prep_run(place, tmp_path / "own.zarr").code == 0
    options = ("--report-images", 0, "--out", tmp_path / "o")
    done = samdeblur("eval", "run", checkpoint, tmp_path / "own.zarr" if as_store else place, *options)
    assert done.code == 0, done.err
    (found,) = json.loads((tmp_path / "o/results.json").read_text())["sets"]
    assert (found["dataset"], found["inference"]["tlc"]) == ("own" if as_store else "mine", None)
    assert "GoPro has 1,111 images, this has 5" in done.err
    assert "(published)" not in samdeblur("eval", "table", tmp_path / "o").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tile", 33, "--overlap", 0], "--tile and --overlap: tile 33: NAFNet needs multiples of 2, for instance 32"),
        (["--tile", 32, "--overlap", 3], "overlap 3: NAFNet needs multiples of 2"),
        (["--overlap", 8], "--overlap is for --tile"),
        (["--train-size", 64], "--train-size is for --tlc"),
        (["--tile", 0], "--tile"),
        (["--tile", 64, "--overlap", -2], "--overlap"),
        (["--tlc", "--train-size", 0], "--train-size"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused_and_nothing_is_written(
    samdeblur, checkpoint, store, tmp_path, options, words
):
    refused = samdeblur("eval", "run", checkpoint, store, "--out", tmp_path / "o", *options)
    assert (refused.code, words in refused.error) == (2, True), refused.error
    assert not (tmp_path / "o").exists()


def test_out_of_gpu_memory_is_one_line_that_suggests_tiles(samdeblur, checkpoint, store, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(NAFNet, "forward", full)
    failed = samdeblur("eval", "run", checkpoint, store, "--out", tmp_path / "o")
    assert failed.code == 1
    assert "not enough memory for an image of 64x48 at once: give a tile size, as in --tile 512" in failed.error


def test_what_stays_global_is_named(samdeblur, checkpoint, store, tmp_path, monkeypatch):
    forward = NAFNet.forward
    monkeypatch.setattr(NAFNet, "forward", lambda self, image: forward(self, image - image.mean((2, 3), keepdim=True)))
    done = samdeblur("eval", "run", checkpoint, store, "--report-images", 0, "--tlc", "--out", tmp_path / "o")
    assert done.code == 0
    assert "--tlc: these still average over the whole image: network (mean in NAFNet)" in done.err


def test_the_guard_is_named_in_results_and_its_findings_with_each_image(
    samdeblur, checkpoint, store, tmp_path, monkeypatch
):
    forward = NAFNet.forward
    monkeypatch.setattr(NAFNet, "forward", lambda self, image: 5 * forward(self, image) - 2)
    options = ("--report-images", 1, "--guard", "tlc-off,input", "--out", tmp_path / "o")
    done = samdeblur("eval", "run", checkpoint, store, *options)
    assert done.code == 0, done.err
    (found,) = json.loads((tmp_path / "o/results.json").read_text())["sets"]
    assert found["inference"]["guard"] == "tlc-off,input"
    assert {image["fallback"] for image in found["images"]} == {"input"}
    assert all(image["flags"] and image["psnr"] == image["psnr_blurred"] for image in found["images"])
    assert "guard tlc-off,input" in done.out


def test_a_guard_that_is_not_known_is_refused(samdeblur, checkpoint, store, tmp_path):
    refused = samdeblur("eval", "run", checkpoint, store, "--guard", "tiled,crop", "--out", tmp_path / "o")
    assert (refused.code, "'crop' is not one of flag, tlc-off, tiled, input" in refused.error) == (2, True)

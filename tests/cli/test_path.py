"""The path a user walks."""

import hashlib
import json

import pytest
import torch

from samdeblur.models import NAFNet
from samdeblur.models.checkpoints.public import BUNDLED
from samdeblur.pipeline import BUNDLED_SETTINGS
from samdeblur.storage import open_store


@pytest.mark.parametrize("method", ["none", "map-dropout"])
def test_prepare_train_evaluate_compare(samdeblur, store, tiny, tmp_path, method):
    run, results, comparison = tmp_path / "run", tmp_path / "results", tmp_path / "comparison"
    assert samdeblur("train", store, "--method", method, *tiny, "--out", run).code == 0
    assert {"config.yaml", "run.json", "log.csv", "curves.png", "best.safetensors"} <= {f.name for f in run.iterdir()}

    assert samdeblur("eval", "run", run, store, "--with-step-0", "--out", results).code == 0
    (scored,) = json.loads((results / "results.json").read_text())["sets"]
    assert [image["key"] for image in scored["images"]] == open_store(store).keys
    assert scored["psnr_step_0"] is not None
    assert len((results / "results.csv").read_text().splitlines()) == 1 + 5

    table = samdeblur("eval", "table", results, "--curves", run, "--out", comparison)
    assert table.code == 0
    assert method in table.out
    assert (comparison / "report.html").exists()


def test_a_finished_preparation_and_a_finished_run_do_nothing_again(samdeblur, pairs, store, prep_run, tiny, tmp_path):
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    assert "nothing to do: 5 images done before" in prep_run(pairs, store).out
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before

    command = ("train", store, *tiny, "--out", tmp_path / "run")
    samdeblur(*command)
    weights = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert samdeblur(*command).code == 0
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == weights


def test_sam_runs_from_a_checkpoint_with_its_settings_as_options(samdeblur, pairs, prep_run, random_sam, tmp_path):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    options = ["--sam", tmp_path / "sam.pth", "--points-per-side", 3, "--points-per-batch", 9, "--channel-order", "bgr"]
    options += ["--pred-iou-thresh", -1, "--stability-score-thresh", 0, "--box-nms-thresh", 1]
    assert prep_run(pairs, tmp_path / "sam.zarr", *options).code == 0
    opened = open_store(tmp_path / "sam.zarr")
    assert opened.header.recipe["segmenter"]["points_per_side"] == 3
    assert opened.header.recipe["segmenter"]["channel_order"] == "bgr"
    assert opened.counts[:, 0].sum() > 0
    assert len(opened.records("000")["predicted_iou"]) == opened.atoms("000").n_masks
    assert samdeblur("prep", "verify", tmp_path / "sam.zarr").code == 0


def test_sam_may_find_nothing(pairs, prep_run, random_sam, tmp_path):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    options = ["--sam", tmp_path / "sam.pth", "--points-per-side", 2, "--pred-iou-thresh", 1]
    assert prep_run(pairs, tmp_path / "sam.zarr", *options).code == 0
    assert open_store(tmp_path / "sam.zarr").atoms("000").n_masks == 0


def test_point_grids_come_from_a_file(pairs, prep_run, random_sam, tmp_path):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    (tmp_path / "grid.json").write_text("[[[0.5, 0.5], [0.25, 0.75]]]")
    options = ["--sam", tmp_path / "sam.pth", "--point-grids", tmp_path / "grid.json", "--pred-iou-thresh", -1]
    assert prep_run(pairs, tmp_path / "sam.zarr", *options, "--stability-score-thresh", 0).code == 0
    points = open_store(tmp_path / "sam.zarr").records("000")
    assert set(zip(points["point_x"], points["point_y"], strict=True)) <= {(32.0, 24.0), (16.0, 36.0)}


def test_a_trained_network_pre_deblurs(samdeblur, pairs, store, prep_run, tiny, tmp_path):
    samdeblur("train", store, *tiny, "--out", tmp_path / "run")
    assert prep_run(pairs, tmp_path / "second.zarr", "--predeblur", tmp_path / "run").code == 0
    first, second = open_store(store), open_store(tmp_path / "second.zarr")
    assert second.header.recipe["predeblur"] is not None
    assert (second.image("blurred", "000") == first.image("blurred", "000")).all()
    assert any(second.atoms(key) != first.atoms(key) for key in first)


def test_status_and_verify_report(samdeblur, store):
    assert "5 of 5 images done" in samdeblur("prep", "status", store).out
    assert "sound" in samdeblur("prep", "verify", store).out
    shard = next(store.glob("atoms/c/*/*/*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = samdeblur("prep", "verify", store)
    assert damaged.code == 1
    assert "atoms/c/" in damaged.out


@pytest.mark.parametrize("arguments", [("prep",), ("prep", "run"), ("train",), ("eval", "run"), ("eval", "table")])
def test_help_is_there(samdeblur, arguments):
    shown = samdeblur(*arguments, "--help")
    assert shown.code == 0
    assert "Usage:" in shown.out


@pytest.mark.parametrize("name", ["toy.zarr.zip", "toy.h5"])
def test_a_store_is_exported_and_trained_on_as_one_file(samdeblur, pairs, store, prep_run, tiny, tmp_path, name):
    share = tmp_path / name
    exported = samdeblur("prep", "export", store, share, "--with-images", "--licence", "CC0")
    assert (exported.code, f"{name}.sha256" in exported.out) == (0, True)
    assert "5 of 5 images done" in samdeblur("prep", "status", share).out
    assert "sound" in samdeblur("prep", "verify", share).out
    trained = samdeblur("train", share, *tiny, "--method", "map-dropout", "--out", tmp_path / "run")
    assert trained.code == 0
    refused = prep_run(pairs, share)
    assert (refused.code, "give a folder to write the store to" in refused.error) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["x.tar"], "name it .zip, .h5 or .hdf5"), (["x.zip", "--codec", "gzip"], "--codec is for HDF5")],
)
def test_exports_to_something_else_are_refused(samdeblur, store, options, words):
    refused = samdeblur("prep", "export", store, *options)
    assert (refused.code, words in refused.err) == (2, True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bundled_models_are_the_defaults(samdeblur, pairs, tmp_path, split):
    command = ("prep", "run", pairs, tmp_path / "s.zarr", "--split", split, "--workers", 1, "--points-per-side", 3)
    assert samdeblur(*command).code == 0
    recipe = open_store(tmp_path / "s.zarr").header.recipe
    digests = {
        name: hashlib.sha256((BUNDLED / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("sam", "nafnet")
    }
    assert recipe["predeblur"] == ({"checkpoint": digests["nafnet"]} if split == "train" else None)
    assert recipe["segmenter"]["checkpoint"] == digests["sam"]
    assert recipe["segmenter"]["points_per_side"] == 3
    assert recipe["segmenter"]["pred_iou_thresh"] == BUNDLED_SETTINGS["pred_iou_thresh"]


def test_the_bundled_network_is_evaluated_by_name(samdeblur, store, tmp_path):
    assert samdeblur("eval", "run", "bundled", store, "--out", tmp_path / "results").code == 0
    assert json.loads((tmp_path / "results" / "results.json").read_text())["weights"].endswith("nafnet.safetensors")


def test_faster_precision_is_a_recipe_of_its_own(samdeblur, pairs, tmp_path):
    command = ("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test", "--workers", 1, "--points-per-side", 2)
    assert samdeblur(*command, "--precision", "bfloat16", "--sdpa", "--encoder-batch", 3).code == 0
    mode = open_store(tmp_path / "s.zarr").header.recipe["mode"]
    assert mode == {"name": "tolerance", "precision": "bfloat16", "compile": False, "sdpa": True, "batch": 3}
    refused = samdeblur(*command)
    assert (refused.code, "mode: was tolerance, now exact" in refused.error) == (2, True)
    refused = samdeblur(
        "prep", "run", pairs, tmp_path / "t.zarr", "--split", "test", "--segmenter", "superpixels", "--sdpa"
    )
    assert (refused.code, "--sdpa needs --segmenter sam" in refused.err) == (2, True)


def test_a_released_network_is_evaluated_with_its_own_semantics(samdeblur, store, tmp_path):
    state = dict(NAFNet(4, [1], 1, [1]).state_dict())
    state["intro.weight"] = torch.randn(4, 5, 3, 3)
    encoder = {"pre_seg": (2, 3, 3, 3), "pre_seg_in": (2, 2, 1, 1)}
    state |= {f"{name}.weight": torch.randn(shape) for name, shape in encoder.items()}
    state |= {f"{name}.bias": torch.randn(2) for name in encoder}
    torch.save({"params": state}, tmp_path / "SegNAFNet.pth")
    assert samdeblur("eval", "run", tmp_path / "SegNAFNet.pth", store, "--out", tmp_path / "r").code == 0
    assert json.loads((tmp_path / "r/results.json").read_text())["method"] == "SegNAFNet (released-map)"

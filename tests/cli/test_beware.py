"""What evaluations say of themselves: unfinished runs, masks of another kind, images that are left out."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from samdeblur.models import load_network
from samdeblur.storage import open_store
from samdeblur.train import running


def document(folder):
    return json.loads((folder / "results.json").read_text())


def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def stopped(samdeblur, store, tiny, tmp_path, monkeypatch):
    """stopped(name, step, *options) -> a run of four steps that was interrupted in the step after."""

    def call(name, step, *options):
        take = running.Run.take_step

        def interrupted(run, number, batches):
            if number > step:
                raise KeyboardInterrupt
            take(run, number, batches)

        with monkeypatch.context() as patch:
            patch.setattr(running.Run, "take_step", interrupted)
            settings = ("--steps", 4, "--set", "save_every=1", "--set", "val_every=4", "--set", "keep_every=1")
            done = samdeblur("train", store, *tiny[:-2], *settings, *options, "--out", tmp_path / name)
        assert done.code == 130, done.err
        return tmp_path / name

    return call


def test_an_interrupted_run_says_so_and_of_which_step_its_weights_are(samdeblur, stopped, store, tmp_path):
    run = stopped("run", 3)
    assert not (run / "best.safetensors").exists()
    done = samdeblur("eval", "run", run, store, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    words = "step 3 of 4, which is not finished: it stands at step 3"
    assert document(tmp_path / "o")["weights"].endswith("last.safetensors")
    assert document(tmp_path / "o")["trained"] == {"step": 3, "of": 4, "reached": 3, "segmenter": ""}
    assert words in done.out
    assert words in page(tmp_path / "o")
    for form in ("markdown", "latex"):
        assert words in samdeblur("eval", "table", tmp_path / "o", "--format", form).out
    assert ",3," in samdeblur("eval", "table", tmp_path / "o", "--format", "csv").out.splitlines()[-1]
    restored = samdeblur("eval", "restore", run, tmp_path / "pairs/blur/000.png", "--out", tmp_path / "p")
    assert words in restored.err


def test_any_weights_of_a_run_can_be_asked_for_and_are_named(samdeblur, stopped, store, tmp_path):
    run = stopped("run", 3)
    for which, step in (("last", 3), ("initial", 0), ("step-2", 2)):
        out = tmp_path / which
        done = samdeblur("eval", "run", run, store, "--weights", which, "--report-images", 0, "--out", out)
        assert done.code == 0, done.err
        assert document(out)["trained"]["step"] == step
        assert f"step {step} of 4" in done.out
        assert load_network(document(out)["weights"]).provenance["step"] == step
    assert "The weights are of step 0 of 4: they are not trained." in page(tmp_path / "initial")
    for which, words in (
        ("best", "nothing was validated after step 0; there are initial, last, step-1"),
        ("step-9", "no step-9"),
    ):
        refused = samdeblur("eval", "run", run, store, "--weights", which, "--out", tmp_path / "refused")
        assert (refused.code, words in refused.error) == (2, True), refused.error
    refused = samdeblur("prep", "run", "worlds:1:64", tmp_path / "w.zarr", "--split", "train", "--predeblur", run)
    assert (refused.code, "no best.safetensors yet" in refused.error) == (2, True)


def test_a_finished_run_is_of_its_best_step_and_never_of_step_0(samdeblur, store, tiny, tmp_path, monkeypatch):
    validate, worse = running.Run.validate, iter(range(9))

    def ever_worse(run):
        return validate(run) | {"val_psnr": 30.0 - next(worse)}

    monkeypatch.setattr(running.Run, "validate", ever_worse)
    options = ("--set", "val_every=1", "--out", tmp_path / "run")
    trained = samdeblur("train", store, *tiny, *options)
    assert trained.code == 0
    assert "30.00 dB at step 0, best 29.00 dB at step 1" in trained.out
    assert "never got back to that of the starting weights" in trained.err
    done = samdeblur("eval", "run", tmp_path / "run", store, "--out", tmp_path / "o")
    assert document(tmp_path / "o")["trained"] == {"step": 1, "of": 2, "reached": 2, "segmenter": ""}
    assert "step 1 of 2" in done.out
    assert "not finished" not in done.out + page(tmp_path / "o")


def test_masks_of_another_kind_than_in_training_are_noted(
    samdeblur, store, tiny, pairs, prep_run, random_sam, tmp_path
):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    assert prep_run(pairs, tmp_path / "sam.zarr", "--sam", tmp_path / "sam.pth", "--predeblur", "none").code == 0
    run = tmp_path / "run"
    assert samdeblur("train", store, *tiny, "--method", "map", "--out", run).code == 0
    facts = json.loads((run / "run.json").read_text())["train"]
    opened = open_store(store)
    assert (facts["seal"], facts["recipe"]) == (opened.header.seal, opened.header.fingerprint)
    assert facts["made_by"] == opened.header.recipe
    assert samdeblur("eval", "run", run, store, "--out", tmp_path / "same").code == 0
    done = samdeblur("eval", "run", run, tmp_path / "sam.zarr", "--out", tmp_path / "other")
    words = f"the network was trained with masks of {facts['segmenter']}"
    assert facts["segmenter"].startswith("superpixels")
    assert words in done.out
    assert words in page(tmp_path / "other")
    assert words in samdeblur("eval", "table", tmp_path / "other").out
    assert words not in page(tmp_path / "same") + samdeblur("eval", "table", tmp_path / "same").out
    moved = tmp_path / "moved.safetensors"
    (run / "best.safetensors").rename(moved)
    assert words in samdeblur("eval", "run", moved, tmp_path / "sam.zarr", "--out", tmp_path / "moved").out


@pytest.fixture
def with_small(pairs):
    """The pairs, and three more that are smaller than a window of SSIM."""
    for name, shape in (("dot", (1, 1)), ("strip", (10, 60)), ("tall", (40, 3))):
        for folder in ("blur", "sharp"):
            cv2.imwrite(str(pairs / folder / f"{name}.png"), np.full((*shape, 3), 99, np.uint8))
    return pairs


@pytest.mark.parametrize("options", [(), ("--guard", "tlc-off,tiled,input"), ("--align", "ecc"), ("--tlc",)])
def test_small_images_are_left_out_counted_and_named(samdeblur, checkpoint, with_small, prep_run, tmp_path, options):
    assert prep_run(with_small, tmp_path / "s.zarr").code == 0
    for place in (with_small, tmp_path / "s.zarr"):
        for _ in range(2):  # the second time as well
            done = samdeblur("eval", "run", checkpoint, place, *options, "--out", tmp_path / f"o-{place.name}")
            assert done.code == 3, done.err
            for name, size in (("dot", "1x1"), ("strip", "60x10"), ("tall", "3x40")):
                assert f"{name} is left out: {size} pixels, less than the 11 of a window of SSIM" in done.err
        (found,) = document(tmp_path / f"o-{place.name}")["sets"]
        assert (len(found["images"]), found["unready"], set(found["left_out"])) == (5, 3, {"dot", "strip", "tall"})
        assert "3 images left out: dot (1x1 pixels" in page(tmp_path / f"o-{place.name}")


def test_a_set_of_small_images_alone_fails_in_one_line(samdeblur, checkpoint, with_small, tmp_path):
    for folder in ("blur", "sharp"):
        for path in (with_small / folder).glob("0*.png"):
            path.unlink()
    failed = samdeblur("eval", "run", checkpoint, with_small, "--out", tmp_path / "o")
    assert failed.code == 1
    assert "none of 3 images can be used; dot: 1x1 pixels" in failed.err


def test_training_does_not_stumble_over_small_images(samdeblur, with_small, prep_run, tiny, tmp_path):
    assert prep_run(with_small, tmp_path / "s.zarr").code == 0
    for name, options in (("held-out", ("--set", "val_share=0.6")), ("val", ("--val", tmp_path / "s.zarr"))):
        done = samdeblur("train", tmp_path / "s.zarr", *tiny, *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
        assert "3 images smaller than 11 pixels, and not validated on: dot, strip, tall" in done.err
        held_out = json.loads((tmp_path / name / "run.json").read_text())["validation"]["images"]
        assert len(held_out) == (5 if name == "val" else 4)
        assert not {"dot", "strip", "tall"} & set(held_out)


def test_images_of_the_training_are_noted(samdeblur, store, tiny, prep_run, pairs, tmp_path):
    assert samdeblur("train", store, *tiny, "--out", tmp_path / "run").code == 0
    assert samdeblur("prep", "export", store, tmp_path / "copy.zarr.zip", "--with-images").code == 0
    cv2.imwrite(str(pairs / "blur/000.png"), np.zeros((48, 72, 3), np.uint8))
    cv2.imwrite(str(pairs / "sharp/000.png"), np.zeros((48, 72, 3), np.uint8))
    assert prep_run(pairs, tmp_path / "other.zarr").code == 0
    words = "the network was trained on these images"
    for place, same in ((store, True), (tmp_path / "copy.zarr.zip", True), (tmp_path / "other.zarr", False)):
        out = tmp_path / f"of-{place.name}"
        done = samdeblur("eval", "run", tmp_path / "run", place, "--out", out)
        said = (done.out, page(out), samdeblur("eval", "table", out).out)
        assert [words in text for text in said] == [same] * 3, place


def test_quarantined_images_are_named_and_counted(samdeblur, checkpoint, pairs, prep_run, tiny, tmp_path):
    for name in ("001", "003"):
        (pairs / f"blur/{name}.png").write_bytes(b"no image")
    assert prep_run(pairs, tmp_path / "s.zarr").code == 3
    done = samdeblur("eval", "run", checkpoint, tmp_path / "s.zarr", "--out", tmp_path / "o")
    assert done.code == 3
    assert "3 of 5 images; 2 quarantined (001: " in done.err
    assert set(document(tmp_path / "o")["sets"][0]["left_out"]) == {"001", "003"}
    assert "2 images left out: 001 (quarantined: " in page(tmp_path / "o")
    trained = samdeblur("train", tmp_path / "s.zarr", *tiny, "--out", tmp_path / "run")
    assert trained.code == 0
    assert "3 of 5 images; 2 quarantined (001: " in trained.err


def test_one_image_prints_no_interval(samdeblur, checkpoint, pairs, tmp_path):
    for folder in ("blur", "sharp"):
        for path in sorted((pairs / folder).iterdir())[1:]:
            path.unlink()
    done = samdeblur("eval", "run", checkpoint, pairs, "--out", tmp_path / "o")
    assert "1 image, too few for means to say much" in done.out
    table = samdeblur("eval", "table", tmp_path / "o").out
    assert "[" not in table.split("## Scores with")[1].split("- PSNR")[0]


def test_the_report_is_there_before_anything_is_printed(store, tmp_path, monkeypatch, samdeblur):
    """As with `samdeblur-eval run ... | true`."""

    def gone(*_, **options):
        if not options.get("err"):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("samdeblur.cli.eval.click.echo", gone)
    samdeblur("eval", "run", "bundled", store, "--out", tmp_path / "out", "--report-images", 0)
    assert (tmp_path / "out/report.html").stat().st_size > 0
    assert (tmp_path / "out/results.json").stat().st_size > 0

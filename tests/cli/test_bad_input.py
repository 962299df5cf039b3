"""Bad input gets one line and the right exit code, and loses nothing."""

import errno
import os
import shutil

import cv2
import pytest
import torch

from samdeblur.models import NAFNet
from samdeblur.storage import files
from samdeblur.storage.format import durable


@pytest.mark.parametrize("folder", ["blur", "sharp"])
def test_a_missing_folder_is_refused(prep_run, pairs, tmp_path, folder):
    assert prep_run(tmp_path / "nowhere", tmp_path / "s.zarr").error.endswith("nowhere: no such folder")
    shutil.rmtree(pairs / folder)
    refused = prep_run(pairs, tmp_path / "s.zarr")
    assert (refused.code, "no known layout" in refused.error) == (2, True)


def test_a_folder_without_images_is_refused(prep_run, pairs, tmp_path):
    for file in pairs.rglob("*.png"):
        file.unlink()
    refused = prep_run(pairs, tmp_path / "s.zarr")
    assert (refused.code, "no images" in refused.error) == (2, True)


def test_unpaired_names_are_listed_or_skipped(prep_run, pairs, tmp_path):
    (pairs / "sharp" / "001.png").unlink()
    (pairs / "blur" / "003.png").unlink()
    refused = prep_run(pairs, tmp_path / "s.zarr")
    assert refused.code == 2
    assert "001 (no sharp), 003 (no blurred)" in refused.error
    assert not (tmp_path / "s.zarr").exists()
    assert "3 of 3 images done" in prep_run(pairs, tmp_path / "s.zarr", "--skip-unpaired").out


def test_a_truncated_image_is_quarantined_and_the_rest_done(samdeblur, prep_run, pairs, tmp_path):
    file = pairs / "blur" / "002.png"
    file.write_bytes(file.read_bytes()[:-60])
    finished = prep_run(pairs, tmp_path / "s.zarr")
    assert finished.code == 3
    assert "4 of 5 images done" in finished.out
    assert "quarantined 002" in finished.out
    assert samdeblur("prep", "status", tmp_path / "s.zarr").code == 3


def test_a_file_that_is_no_image_is_quarantined(prep_run, pairs, tmp_path):
    (pairs / "blur" / "002.png").write_text("hello")
    finished = prep_run(pairs, tmp_path / "s.zarr")
    assert (finished.code, "002.png: not an image" in finished.out) == (3, True)


def test_sizes_that_differ_within_a_pair_are_quarantined(prep_run, pairs, tmp_path):
    file = str(pairs / "sharp" / "004.png")
    cv2.imwrite(file, cv2.imread(file)[:-3])
    finished = prep_run(pairs, tmp_path / "s.zarr")
    assert (finished.code, "differ in size, 64x48 and 64x45" in finished.out) == (3, True)


@pytest.mark.parametrize("option", ["--predeblur", "--sam"])
def test_weights_that_cannot_be_used_are_refused_before_a_store_is_made(prep_run, pairs, random_sam, tmp_path, option):
    store = tmp_path / "s.zarr"
    (tmp_path / "text.pth").write_text("hello")
    torch.save(NAFNet(4, [1], 1, [1]).state_dict(), tmp_path / "nafnet.pth")
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    other = {"--predeblur": "sam.pth", "--sam": "nafnet.pth"}[option]
    for name, words in (
        ("missing.pth", "no such checkpoint"),
        ("text.pth", "not a checkpoint"),
        (other, "it looks like"),
    ):
        refused = prep_run(pairs, store, option, tmp_path / name)
        assert (refused.code, name in refused.error, words in refused.error) == (2, True, True), refused.error
        assert not store.exists()


def test_a_store_of_another_recipe_is_refused_naming_the_difference(prep_run, pairs, store, tmp_path, random_sam):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    refused = prep_run(pairs, store, "--sam", tmp_path / "sam.pth")
    assert (refused.code, "segmenter: was superpixels, now sam" in refused.error) == (2, True)
    assert "with images is True in the store" in prep_run(pairs, store, "--without-images").error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prep", "run", "x", "y", "--split", "test", "--speling"), "--speling"),
        (("prep", "run", "x", "y"), "--split"),
        (
            ("prep", "run", "x", "y", "--split", "test", "--segmenter", "superpixels", "--points-per-side", "4"),
            "--points-per-side needs --segmenter sam",
        ),
        (
            ("prep", "run", "x", "y", "--split", "test", "--segmenter", "superpixels", "--keep-embeddings"),
            "--keep-embeddings needs --segmenter sam",
        ),
        (
            ("prep", "run", "x", "y", "--split", "test", "--segmenter", "true-masks", "--from-embeddings", "z"),
            "--from-embeddings needs --segmenter sam",
        ),
        (
            ("prep", "run", "x", "y", "--split", "test", "--keep-embeddings", "--from-embeddings", "z"),
            "the store of --from-embeddings keeps them",
        ),
        (("prep", "run", "worlds:1:64", "y", "--split", "test", "--from-embeddings", "z"), "z: no such store"),
        (("prep", "status", "nowhere"), "no such store"),
        (("prep", "verify", "nowhere", "more"), "more"),
        (("train", "nowhere", "--out", "run"), "no such store"),
        (("train", "nowhere", "--out", "run", "--set", "widht=3"), "did you mean width?"),
        (("train", "nowhere", "--out", "run", "--set", "steps=many"), "steps"),
        (("train", "nowhere", "--out", "run", "--config", "huge"), "gopro-none, "),
        (("train", "nowhere", "--out", "run", "--method", "magic"), "magic"),
        (("eval", "run", "nowhere", "store", "--out", "o"), "no such run"),
        (("eval", "table", "nowhere"), "no such results"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(samdeblur, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused = samdeblur(*arguments)
    assert (refused.code, words in refused.error) == (2, True), refused.error
    assert not list(tmp_path.iterdir())


def test_a_missing_store_is_an_error_of_verify(samdeblur, tmp_path):
    missing = samdeblur("prep", "verify", tmp_path / "nowhere")
    assert (missing.code, "no such store" in missing.error) == (2, True)


def test_a_target_that_cannot_be_written_is_refused(prep_run, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    failed = prep_run(pairs, tmp_path / "file" / "s.zarr")
    assert (failed.code, str(tmp_path / "file") in failed.error) == (2, True)


def test_a_full_disk_fails_and_the_next_run_finishes(prep_run, pairs, tmp_path, monkeypatch):
    write = files.write_durably

    def full(path, data):
        if "staging" in str(path) and "/1-" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_durably", full)
        failed = prep_run(pairs, tmp_path / "s.zarr")
    assert (failed.code, "No space left on device" in failed.error) == (1, True)
    assert "5 of 5 images done" in prep_run(pairs, tmp_path / "s.zarr").out


def test_training_needs_images_of_the_size_of_the_crop(samdeblur, prep_run, pairs, store, tiny, tmp_path):
    refused = samdeblur("train", store, *tiny, "--set", "crop_size=64", "--out", tmp_path / "run")
    assert (refused.code, "set crop_size to at most 48" in refused.error) == (2, True)
    prep_run(pairs, tmp_path / "masks.zarr", "--without-images")
    for command in (
        ("train", tmp_path / "masks.zarr", *tiny),
        ("train", store, "--val", tmp_path / "masks.zarr", *tiny),
    ):
        refused = samdeblur(*command, "--out", tmp_path / "run")
        assert (refused.code, "masks without images" in refused.error) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_run_with_other_settings_is_refused(samdeblur, store, tiny, tmp_path):
    samdeblur("train", store, *tiny, "--out", tmp_path / "run")
    refused = samdeblur("train", store, *tiny, "--method", "cat", "--out", tmp_path / "run")
    assert (refused.code, "method none -> cat" in refused.error) == (2, True)


def test_debug_shows_the_traceback(samdeblur, tmp_path):
    shown = samdeblur("prep", "status", tmp_path / "nowhere", "--debug")
    assert shown.code == 2
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("stores:\n- {source: {a: b}, store: x, split: test}", "source: a mapping, not a value"),
        ("stores:\n- {source: worlds:2:64, store: [1], split: test}", "store: a list, not a value"),
        ('stores:\n- {source: worlds:2:64, store: "x\\0.zarr", split: test}', "a path with a NUL character"),
        ("stores: " + "[" * 3000 + "]" * 3000, "not YAML"),
    ],
    ids=["mapping", "list", "NUL", "deep"],
)
def test_job_files_with_anything_in_them_are_refused_in_one_line(samdeblur, tmp_path, job, words):
    (tmp_path / "job.yaml").write_text(job)
    result = samdeblur("prep", "run", "--job", tmp_path / "job.yaml")
    assert result.code == 2
    assert words in result.error


def test_what_a_terminal_would_act_on_is_not_in_messages(samdeblur, tmp_path):
    result = samdeblur("prep", "info", tmp_path / "\x1b[31mred\x07.zarr")
    assert result.code == 2
    assert result.error.isprintable()


def test_a_file_that_ends_too_early_is_no_interruption(samdeblur, monkeypatch, tmp_path):
    def read(*_):
        raise EOFError("Ran out of input")

    monkeypatch.setattr("samdeblur.storage.open_store", read)
    result = samdeblur("prep", "info", tmp_path)
    assert (result.code, result.err.strip()) == (1, "error: a file ends too early: Ran out of input")

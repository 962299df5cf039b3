"""Numbers are of the images, the masks and the weights that were given, whatever they are called."""

from __future__ import annotations

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from samdeblur.models import NAFNet
from samdeblur.storage import open_store


@pytest.fixture
def photos(tmp_path, write_pairs):
    """photos(place, seed, count=3) -> PLACE/photos with pairs of other images for each seed, of the same names."""

    def make(place, seed, count=3):
        folder = tmp_path / place / "photos"
        for number in range(count):
            rng = np.random.default_rng(100 * seed + number)
            sharp = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (50, 40), interpolation=cv2.INTER_NEAREST)
            for side, image in (("sharp", sharp), ("blur", cv2.blur(sharp, (5, 5)))):
                (folder / side).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / side / f"{number}.png"), image)
        return folder

    return make


def sets(folder):
    return json.loads((folder / "results.json").read_text())["sets"]


def scored(folder):
    return [found["images"] for found in sets(folder)]


def images(folder):
    """What is kept for the report and restored, by place below the folder of the set."""
    return {
        (path.relative_to(folder).parts[0], *path.relative_to(folder).parts[2:]): path.read_bytes()
        for kind in ("images", "thumbnails", "restored")
        for path in (folder / kind).rglob("*")
        if path.is_file()
    }


def test_two_sets_of_one_name_are_two_evaluations(samdeblur, checkpoint, photos, tmp_path):
    places = [photos("x", 1), photos("y", 2)]
    done = samdeblur("eval", "run", checkpoint, *places, "--save-images", "--out", tmp_path / "both")
    assert done.code == 0, done.err
    for name, place in zip("xy", places, strict=True):
        alone = samdeblur("eval", "run", checkpoint, place, "--save-images", "--out", tmp_path / f"alone-{name}")
        assert alone.code == 0
    apart = [scored(tmp_path / "alone-x")[0], scored(tmp_path / "alone-y")[0]]
    assert apart[0] != apart[1]
    assert scored(tmp_path / "both") == apart
    assert [found["dataset"] for found in sets(tmp_path / "both")] == ["photos (x/photos)", "photos (y/photos)"]
    assert len(list((tmp_path / "both/restored").iterdir())) == 2
    table = samdeblur("eval", "table", tmp_path / "both")
    assert (table.code, "photos (x/photos) test" in table.out) == (0, True)


def test_two_stores_of_one_dataset_are_two_sets(samdeblur, checkpoint, photos, prep_run, tmp_path):
    for seed, name in enumerate(("a", "b")):
        assert prep_run(photos(name, seed), tmp_path / f"{name}.zarr").code == 0
    stores = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    assert samdeblur("eval", "run", checkpoint, *stores, "--out", tmp_path / "both").code == 0
    for store in stores:
        assert samdeblur("eval", "run", checkpoint, store, "--out", tmp_path / f"alone-{store.stem}").code == 0
    assert scored(tmp_path / "both") == [scored(tmp_path / "alone-a")[0], scored(tmp_path / "alone-b")[0]]


def test_one_set_after_the_other_into_one_folder_is_that_of_the_second(samdeblur, checkpoint, photos, tmp_path):
    x, y = photos("x", 1), photos("y", 2)
    for place, out in ((x, "o"), (y, "o"), (y, "fresh"), (x, "first")):
        assert samdeblur("eval", "run", checkpoint, place, "--save-images", "--out", tmp_path / out).code == 0
    assert scored(tmp_path / "o") == scored(tmp_path / "fresh")
    assert images(tmp_path / "o") == images(tmp_path / "fresh")
    assert samdeblur("eval", "run", checkpoint, x, "--save-images", "--out", tmp_path / "o").code == 0  # and back
    assert scored(tmp_path / "o") == scored(tmp_path / "first")
    assert images(tmp_path / "o") == images(tmp_path / "first")


def test_a_set_given_twice_is_refused(samdeblur, checkpoint, photos, tmp_path):
    x = photos("x", 1)
    (tmp_path / "link").symlink_to(x)
    refused = samdeblur("eval", "run", checkpoint, x, tmp_path / "link", "--out", tmp_path / "o")
    assert (refused.code, "given twice" in refused.error) == (2, True)


@pytest.mark.parametrize("side", ["blur", "sharp"])
def test_an_image_that_was_replaced_is_scored_anew_and_no_other(
    samdeblur, checkpoint, photos, tmp_path, monkeypatch, side
):
    folder, other = photos("x", 1), photos("y", 2)
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "o").code == 0
    path = folder / side / "1.png"
    times = path.stat()
    shutil.copyfile(other / side / "1.png", path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # even where its time is kept
    calls = counted(monkeypatch)
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "o").code == 0
    assert len(calls) == 1
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "fresh").code == 0
    assert scored(tmp_path / "o") == scored(tmp_path / "fresh")
    assert images(tmp_path / "o") == images(tmp_path / "fresh")


def counted(monkeypatch):
    """Calls of the network, from now on."""
    calls, forward = [], NAFNet.forward
    monkeypatch.setattr(NAFNet, "forward", lambda self, image, *rest: calls.append(1) or forward(self, image, *rest))
    return calls


def test_images_that_were_touched_or_moved_are_the_same(samdeblur, checkpoint, photos, tmp_path, monkeypatch):
    folder = photos("x", 1)
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "o").code == 0
    calls = counted(monkeypatch)
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "o").code == 0
    shutil.copytree(folder, tmp_path / "z/photos")
    assert samdeblur("eval", "run", checkpoint, tmp_path / "z/photos", "--out", tmp_path / "o").code == 0
    assert calls == []


def test_a_store_made_anew_under_its_name_is_scored_anew(samdeblur, checkpoint, photos, prep_run, tmp_path):
    assert prep_run(photos("x", 1), tmp_path / "s.zarr").code == 0
    recipe = open_store(tmp_path / "s.zarr").header.fingerprint
    assert samdeblur("eval", "run", checkpoint, tmp_path / "s.zarr", "--out", tmp_path / "o").code == 0
    shutil.rmtree(tmp_path / "s.zarr")
    assert prep_run(photos("y", 2), tmp_path / "s.zarr").code == 0
    assert open_store(tmp_path / "s.zarr").header.fingerprint == recipe
    for out in ("o", "fresh"):
        assert samdeblur("eval", "run", checkpoint, tmp_path / "s.zarr", "--out", tmp_path / out).code == 0
    assert scored(tmp_path / "o") == scored(tmp_path / "fresh")
    assert images(tmp_path / "o") == images(tmp_path / "fresh")


def test_a_restored_image_that_was_taken_away_is_restored_again(samdeblur, checkpoint, photos, tmp_path, monkeypatch):
    options = (checkpoint, photos("x", 1), "--save-images", "--out", tmp_path / "o")
    assert samdeblur("eval", "run", *options).code == 0
    (gone,) = (tmp_path / "o/restored").rglob("1.png")
    before = gone.read_bytes()
    gone.unlink()
    calls = counted(monkeypatch)
    assert samdeblur("eval", "run", *options).code == 0
    assert (len(calls), gone.read_bytes()) == (1, before)


# What a folder is


@pytest.mark.parametrize("name", ["preview.png", "._preview.png", "Thumbs.jpg", "sheet.webp"])
def test_a_stray_image_beside_the_pairs_changes_nothing(samdeblur, checkpoint, photos, tmp_path, name):
    folder = photos("x", 1)
    assert samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "before").code == 0
    cv2.imwrite(str(tmp_path / "stray.png"), np.zeros((20, 20, 3), np.uint8))
    shutil.copy(tmp_path / "stray.png", folder / name)
    done = samdeblur("eval", "run", checkpoint, folder, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    assert scored(tmp_path / "o") == scored(tmp_path / "before")
    assert ("ignored, as they belong to no pair" in done.err) == (not name.startswith("."))


def test_a_layout_or_split_that_is_given_is_obeyed(samdeblur, checkpoint, photos, tmp_path):
    folder = photos("x", 1)
    for options in (("--layout", "gopro"), ("--layout", "reds", "--split", "val")):
        refused = samdeblur("eval", "run", checkpoint, folder, *options, "--out", tmp_path / "o")
        assert refused.code == 2, options
    alone = samdeblur("eval", "run", checkpoint, folder / "blur", "--split", "test", "--out", tmp_path / "o")
    assert (alone.code, "no known layout" in alone.error) == (2, True)
    split = tmp_path / "tree/val"
    split.parent.mkdir()
    folder.rename(split)
    assert samdeblur("eval", "run", checkpoint, tmp_path / "tree", "--split", "val", "--out", tmp_path / "o").code == 0
    assert sets(tmp_path / "o")[0]["split"] == "val"


def test_runs_results_and_images_in_each_others_place_are_recognised(
    samdeblur, checkpoint, photos, tiny, prep_run, tmp_path
):
    folder = photos("x", 1)
    assert prep_run(folder, tmp_path / "s.zarr").code == 0
    run, out = tmp_path / "run", tmp_path / "o"
    assert samdeblur("train", tmp_path / "s.zarr", *tiny, "--out", run).code == 0
    assert samdeblur("eval", "run", checkpoint, folder, "--out", out).code == 0
    for arguments, words in [
        (("run", checkpoint, run), "holds a training run, and no images to score; swapped?"),
        (("run", run, run), "swapped?"),
        (("run", checkpoint, out), "holds an evaluation, and no images to score"),
        (("run", tmp_path / "s.zarr", run), "swapped?"),
        (("run", out, folder), "It holds an evaluation; swapped?"),
        (("table", run), "a training run, not results"),
    ]:
        refused = samdeblur("eval", *arguments, *(("--out", tmp_path / "new") if arguments[0] == "run" else ()))
        assert (refused.code, words in refused.error) == (2, True), refused.err
        assert not (tmp_path / "new").exists()


def test_no_command_writes_into_a_folder_that_is_not_its_own(samdeblur, checkpoint, photos, tiny, prep_run, tmp_path):
    folder = photos("x", 1)
    assert prep_run(folder, tmp_path / "s.zarr").code == 0
    run, out, table = tmp_path / "run", tmp_path / "o", tmp_path / "t"
    holiday = tmp_path / "holiday"
    shutil.copytree(folder / "blur", holiday)
    train, score = ("train", tmp_path / "s.zarr", *tiny), ("eval", "run", checkpoint, folder)
    compare = ("eval", "table", out)
    for command, place in ((train, run), (score, out), (compare, table)):
        assert samdeblur(*command, "--out", place).code == 0
    for command, own in ((train, run), (score, out), (compare, table)):
        for place in {run, out, table, holiday, tmp_path / "s.zarr"} - {own}:
            before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
            refused = samdeblur(*command, "--out", place)
            assert refused.code == 2, (command, place)
            assert "name a new folder, or an empty one" in refused.error
            assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
        assert samdeblur(*command, "--out", own).code == 0
    log = tmp_path / "logged"
    log.mkdir()
    (log / "train.log").write_text("begun\n")
    assert samdeblur(*train, "--out", log).code == 0


def test_weights_without_the_state_of_their_run_are_not_written_over(samdeblur, photos, tiny, prep_run, tmp_path):
    assert prep_run(photos("x", 1), tmp_path / "s.zarr").code == 0
    run = tmp_path / "run"
    assert samdeblur("train", tmp_path / "s.zarr", *tiny, "--out", run).code == 0
    before = (run / "best.safetensors").read_bytes()
    (run / "state.pt").unlink()
    refused = samdeblur("train", tmp_path / "s.zarr", *tiny, "--out", run)
    assert (refused.code, "no state.pt to go on from" in refused.error) == (2, True)
    assert (run / "best.safetensors").read_bytes() == before

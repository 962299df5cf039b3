"""The commands that work on stores that are there."""

from __future__ import annotations

import json
import os
import shutil
import stat

import cv2
import numpy as np
import pytest
import servers

from samdeblur.storage import open_store
from samdeblur.storage.access import files


def test_info_says_what_a_store_holds(samdeblur, store):
    shown = samdeblur("prep", "info", store)
    assert shown.code == 0
    for words in ("5 done", "64x48 (5)", "kB per image", "masks per image:", "recipe"):
        assert words in shown.out
    assert json.loads(samdeblur("prep", "info", store, "--json").out)["images"]["done"] == 5


def test_a_contact_sheet_is_written(samdeblur, store, pairs, tmp_path):
    shown = samdeblur("prep", "view", store, tmp_path / "sheet.html", "--keys", "00[12]")
    assert (shown.code, "2 of 5 images" in shown.out) == (0, True)
    assert "001" in (tmp_path / "sheet.html").read_text()
    refused = samdeblur("prep", "view", store, tmp_path / "other.html", "--keys", "gone*")
    assert (refused.code, "gone*" in refused.error) == (2, True)


def test_parts_make_the_whole_again(samdeblur, store, tmp_path):
    first, second, whole = (tmp_path / f"{name}.zarr" for name in ("first", "second", "whole"))
    assert samdeblur("prep", "subset", store, first, "--keys", "00[0-2]").code == 0
    (tmp_path / "names.txt").write_text("003\n004\n\n")
    assert samdeblur("prep", "subset", store, second, "--keys-from", tmp_path / "names.txt").code == 0
    assert "5 of 5 images done" in samdeblur("prep", "append", first, second, whole).out
    assert samdeblur("prep", "diff", store, whole).out.endswith("no differences\n")
    assert samdeblur("prep", "merge", second, first, store, tmp_path / "merged.zarr").code == 0
    assert samdeblur("prep", "diff", tmp_path / "merged.zarr", whole).code == 0
    found = samdeblur("prep", "diff", store, first)
    assert (found.code, "2 images only in" in found.out) == (1, True)
    assert samdeblur("prep", "verify", tmp_path / "merged.zarr").code == 0
    refused = samdeblur("prep", "append", store, first, tmp_path / "no.zarr")
    assert (refused.code, "already" in refused.error) == (2, True)
    refused = samdeblur("prep", "subset", store, tmp_path / "no.zarr")
    assert (refused.code, "--keys" in refused.err) == (2, True)
    (tmp_path / "names.txt").write_text("gone\n")
    refused = samdeblur("prep", "subset", store, tmp_path / "no.zarr", "--keys-from", tmp_path / "names.txt")
    assert (refused.code, "names.txt" in refused.err, "'gone'" in refused.err) == (2, True, True)


def test_what_is_there_is_not_written_over(samdeblur, store, tmp_path):
    notes, before = tmp_path / "notes.txt", {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    notes.write_text("mine")
    part = tmp_path / "part.zarr"
    assert samdeblur("prep", "subset", store, part, "--keys", "00[01]").code == 0
    for command, words in [
        (("view", store, notes), "--overwrite"),
        (("view", store, tmp_path), "a folder"),
        (("export", store, notes, "--format", "coco-results"), "--overwrite"),
        (("export", store, store, "--format", "zip"), "a folder"),
        (("merge", part, store), "two stores"),
        (("merge", part, part, store), "is there already"),
        (("subset", store, store, "--keys", "*"), "is there already"),
        (("append", part, part, store), "already"),
        (("subset", store, tmp_path / "x.zip", "--keys", "*"), "a store is a folder"),
    ]:
        refused = samdeblur("prep", *command)
        assert (refused.code, words in refused.error) == (2, True), refused.err
    assert notes.read_text() == "mine"
    assert before == {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    assert not list(tmp_path.glob("*.partial"))
    assert samdeblur("prep", "export", store, tmp_path / "x.zip").code == 0
    assert samdeblur("prep", "export", store, tmp_path / "x.zip", "--overwrite").code == 0


def test_masks_of_a_share_get_the_images_of_the_dataset(samdeblur, pairs, store, tiny, tmp_path):
    share, whole = tmp_path / "masks.zarr.zip", tmp_path / "whole.zarr"
    assert samdeblur("prep", "export", store, share).code == 0
    refused = samdeblur("train", share, *tiny, "--out", tmp_path / "run")
    assert (refused.code, "add-images" in refused.error) == (2, True)
    assert samdeblur("prep", "add-images", share, pairs, whole).code == 0
    assert samdeblur("prep", "diff", store, whole).code == 0
    assert samdeblur("train", whole, *tiny, "--method", "map", "--out", tmp_path / "run").code == 0
    image = cv2.imread(str(pairs / "blur" / "002.png"))
    cv2.imwrite(str(pairs / "blur" / "002.png"), image ^ 1)
    for folder in ("blur", "sharp"):
        (pairs / folder / "004.png").unlink()
    found = samdeblur("prep", "add-images", share, pairs, tmp_path / "less.zarr")
    assert (found.code, "3 of 5 images done, 2 quarantined" in found.out) == (3, True)
    assert "002: its masks are of another image" in found.out
    other = samdeblur("prep", "add-images", share, "sample", tmp_path / "no.zarr")
    assert (other.code, "no image of" in other.error) == (2, True)


def test_a_merged_store_is_finished_by_prep_run(samdeblur, prep_run, pairs, store, tmp_path):
    for number in range(3):
        for folder in ("blur", "sharp"):
            shutil.copy(pairs / folder / f"{number:03}.png", _made(tmp_path / "less" / folder))
    assert prep_run(tmp_path / "less", tmp_path / "less.zarr", "--dataset", "pairs").code == 0
    assert samdeblur("prep", "merge", tmp_path / "less.zarr", store, tmp_path / "all.zarr").code == 0
    assert prep_run(pairs, tmp_path / "all.zarr").code == 0
    assert samdeblur("prep", "diff", store, tmp_path / "all.zarr").code == 0


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("form", ["coco-instances", "coco-results", "sa-1b"])
def test_masks_go_through_other_formats(samdeblur, store, tmp_path, form):
    target = tmp_path / ("masks" if form == "sa-1b" else "masks.json")
    exported = samdeblur("prep", "export", store, target, "--format", form)
    assert (exported.code, "5 images" in exported.out) == (0, True)
    assert "note: " in exported.err  # what it does not hold
    imported = samdeblur("prep", "import", target, tmp_path / "back.zarr", "--split", "test")
    assert imported.code == 0, imported.err
    mine, theirs = open_store(tmp_path / "back.zarr"), open_store(store)
    assert mine.keys == theirs.keys
    for key in theirs.keys:
        assert mine.atoms(key) == theirs.atoms(key)
    assert samdeblur("prep", "verify", tmp_path / "back.zarr").code == 0


def test_grey_files_are_imported_with_their_images(samdeblur, pairs, tmp_path):
    for number in range(5):
        grey = np.zeros((48, 64), np.uint8)
        grey[10:20, 10:30], grey[15:40, 40:50] = 2, 4
        cv2.imwrite(str(_made(tmp_path / "grey") / f"{number:03}.png"), grey)
    command = ("prep", "import", tmp_path / "grey", tmp_path / "grey.zarr", "--split", "test")
    assert samdeblur(*command, "--images", pairs / "blur").code == 0
    assert open_store(tmp_path / "grey.zarr").atoms("003").n_masks == 2
    assert samdeblur("prep", "verify", tmp_path / "grey.zarr", "--deep", pairs).code == 0
    assert samdeblur("prep", "view", tmp_path / "grey.zarr", tmp_path / "v.html", "--images", pairs / "blur").code == 0


def test_deep_verification_names_other_images(samdeblur, pairs, store):
    assert samdeblur("prep", "verify", store, "--deep", pairs).code == 0
    image = cv2.imread(str(pairs / "blur" / "002.png"))
    image[0, 0, 0] ^= 1
    cv2.imwrite(str(pairs / "blur" / "002.png"), image)
    for folder in ("blur", "sharp"):
        (pairs / folder / "004.png").rename(pairs / folder / "new.png")
    found = samdeblur("prep", "verify", store, "--deep", pairs)
    assert found.code == 1
    for words in (
        "002: its masks are of another image",
        "004: not in the dataset",
        "new: in the dataset",
        "3 problems",
    ):
        assert words in found.out


def test_stores_behind_a_server_are_inspected(samdeblur, store, tmp_path):
    with servers.folder_server(tmp_path) as served:
        url = f"{served.url}/prepared.zarr"
        for command in ("status", "info", "verify"):
            assert samdeblur("prep", command, url).code == 0
        assert samdeblur("prep", "diff", store, url).code == 0
        assert samdeblur("prep", "subset", url, tmp_path / "part.zarr", "--keys", "*1").code == 0
        missing = samdeblur("prep", "info", f"{served.url}/gone.zarr")
        assert (missing.code, "no such store" in missing.error) == (2, True)
    with servers.folder_server(tmp_path, ranges=False) as served:
        refused = samdeblur("prep", "subset", f"{served.url}/prepared.zarr", tmp_path / "p.zarr", "--keys", "*1")
        assert (refused.code, "HTTP Range" in refused.error) == (1, True)


def test_a_silent_server_is_one_line(samdeblur, monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    with servers.silent_server() as served:
        for command in (("prep", "info"), ("train", *tiny, "--out", tmp_path / "run"), ("eval", "run", "bundled")):
            more = ("--out", tmp_path / "results") if command[0] == "eval" else ()
            given_up = samdeblur(*command, f"{served.url}/x.zarr", *more)
            assert (given_up.code, "no answer within" in given_up.error) == (1, True)


COMMANDS = (
    ("info", "STORE"),
    ("status", "STORE"),
    ("view", "STORE", "out.html"),
    ("diff", "STORE", "STORE"),
    ("subset", "STORE", "out.zarr", "--keys", "*"),
    ("merge", "STORE", "STORE", "out.zarr"),
    ("export", "STORE", "out.zip"),
    ("export", "STORE", "out.json", "--format", "coco-results"),
)
FILES = ("zarr.json", "index/state/c/0", "index/key/c/0/0", "atoms/zarr.json")


@pytest.mark.parametrize(
    ("command", "file"),
    [(c, f) for c in COMMANDS for f in FILES if "key" not in f or c[0] not in ("info", "status")],  # they need no names
    ids=str,
)
def test_a_damaged_store_is_one_line_of_every_command(samdeblur, store, tmp_path, command, file):
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    (damaged / file).write_bytes(b"no store")
    given = [tmp_path / part if part.startswith("out") else damaged if part == "STORE" else part for part in command]
    refused = samdeblur("prep", *given)
    assert refused.code in (1, 2)
    assert str(damaged) in refused.error
    assert not list(tmp_path.glob("out*"))


def test_a_pipe_is_not_replaced_by_a_file(samdeblur, store, tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    for command in (("export", store), ("view", store)):
        refused = samdeblur("prep", *command, tmp_path / "pipe.zip", "--overwrite")
        assert (refused.code, "a pipe, a device or a socket" in refused.error) == (2, True)
    assert stat.S_ISFIFO((tmp_path / "pipe.zip").stat().st_mode)

"""What scripts/amg.py of Segment Anything writes becomes one image of a store for each image it was run on."""

from __future__ import annotations

import csv
import json
import os

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samdeblur.storage import ImageNotReady, open_store
from samdeblur.storage.exchange.convert import ExchangeError, import_masks
from samdeblur.storage.sharing.verify import verify_store

HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
    "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
)


def write_folder(folder, masks, seed):
    """As the script does it: N.png and a line of metadata.csv per mask. Returns the records, by column of a store."""
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(seed), [HEADER]
    known = rng.uniform(0.1, 99, (len(masks), 8)).round(3)  # point, predicted_iou, stability_score, crop box
    for number, (mask, values) in enumerate(zip(masks, known, strict=True)):
        assert cv2.imwrite(str(folder / f"{number}.png"), mask * np.uint8(255))
        lines.append(",".join(map(str, [number, int(mask.sum()), 0, 0, 0, 0, *values.tolist()])))
    (folder / "metadata.csv").write_text("\n".join(lines))
    names = ("point_x", "point_y", "predicted_iou", "stability_score", *(f"crop_box_{n}" for n in "xywh"))
    return dict(zip(names, known.T, strict=True))


def write_list(path, masks, seed):
    """As the script does it with --convert-to-rle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, annotations = np.random.default_rng(seed), []
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": float(rng.random()),
                "point_coords": [rng.uniform(0, 9, 2).tolist()],
                "stability_score": float(rng.random()),
                "crop_box": [0, 0, 30, 20],
            }
        )
    path.write_text(json.dumps(annotations))
    return {name: np.array([item[name] for item in annotations]) for name in ("predicted_iou", "stability_score")}


def make(source, tmp_path, **about):
    notes = import_masks(source, tmp_path / "made.zarr", about.pop("format", None), "toy", "train", **about)
    assert list(verify_store(tmp_path / "made.zarr")) == []
    return open_store(tmp_path / "made.zarr"), notes


@pytest.mark.parametrize("write", [write_folder, write_list])
def test_masks_and_records_are_those_of_the_script(tmp_path, random_masks, write):
    rng, source, expected = np.random.default_rng(0), tmp_path / "out", {}
    for number, name in enumerate(["000047", "street/000048", "b.c"]):
        masks = random_masks(rng, 12, 20 + number, 30)  # more than ten: 10.png sorts before 2.png
        path = source / name if write is write_folder else source / f"{name}.json"
        expected[name] = masks, write(path, masks, number)
    store, notes = make(source, tmp_path)
    assert store.ready_keys == sorted(expected)
    for name, (masks, records) in expected.items():
        assert np.array_equal(store.atoms(name).to_masks(), masks)
        found = store.records(name)
        assert np.array_equal(found["area"], masks.sum((1, 2)))
        for column, values in records.items():
            assert np.array_equal(found[column], values), column
    assert not any(note.startswith("not known") for note in notes)


def test_both_forms_side_by_side(tmp_path, random_masks):
    masks = random_masks(np.random.default_rng(1), 5, 20, 30)
    write_folder(tmp_path / "out/a", masks, 0)
    write_list(tmp_path / "out/b.json", masks, 0)
    store, _ = make(tmp_path / "out", tmp_path)
    assert all(np.array_equal(store.atoms(name).to_masks(), masks) for name in ("a", "b"))


@pytest.fixture
def out(tmp_path, random_masks):
    for name in ("a", "b"):
        write_folder(tmp_path / "out" / name, random_masks(np.random.default_rng(2), 4, 20, 30), 0)
    return tmp_path / "out"


def edit_rows(change):
    def damage(folder):
        rows = list(csv.reader((folder / "metadata.csv").read_text().splitlines()))
        change(rows)
        (folder / "metadata.csv").write_text("\r\n".join(",".join(row) for row in rows))

    return damage


DAMAGE = {
    "2.png is missing": lambda folder: (folder / "2.png").unlink(),
    "2.png is not in metadata.csv": edit_rows(lambda rows: rows.pop(3)),
    "its ids are not numbers": edit_rows(lambda rows: rows[1].__setitem__(0, "first")),
    "there twice": edit_rows(lambda rows: rows[1].__setitem__(0, "1")),
    "not a number": edit_rows(lambda rows: rows[1].__setitem__(8, "high")),
    "1.png is 7x9": lambda folder: cv2.imwrite(str(folder / "1.png"), np.zeros((9, 7), np.uint8)),
    "more values than black": lambda folder: cv2.imwrite(
        str(folder / "1.png"), np.arange(600, dtype=np.uint8).reshape(20, 30)
    ),
    "pixel format RGB": lambda folder: cv2.imwrite(str(folder / "1.png"), np.zeros((20, 30, 3), np.uint8)),
    "not a PNG": lambda folder: (folder / "1.png").write_bytes(b"GIF89a"),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_an_image_whose_masks_and_table_do_not_agree_is_quarantined(out, tmp_path, reason):
    DAMAGE[reason](out / "b")
    store, _ = make(out, tmp_path)
    assert store.ready_keys == ["a"]
    assert reason in store.error("b")


def test_a_table_saved_by_a_spreadsheet_reads_the_same(out, tmp_path):
    text = (out / "b/metadata.csv").read_text().splitlines()
    (out / "b/metadata.csv").write_bytes(("\ufeff" + "\r\n".join([text[0], *reversed(text[1:])]) + "\r\n").encode())
    store, _ = make(out, tmp_path)
    assert all(np.array_equal(store.records("a")[name], store.records("b")[name]) for name in store.records("a"))


def test_an_image_without_a_mask_has_the_size_of_its_image(out, tmp_path):
    (out / "c").mkdir()
    (out / "c/metadata.csv").write_text(HEADER + "\n")
    (out / "d.json").write_text("[]")
    store, _ = make(out, tmp_path)
    assert store.ready_keys == ["a", "b"]
    assert "how large" in store.error("c")
    assert "how large" in store.error("d")
    (tmp_path / "made.zarr").rename(tmp_path / "old.zarr")
    (tmp_path / "images").mkdir()
    for name in "abcd":
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), np.zeros((20, 30, 3), np.uint8))
    store, _ = make(out, tmp_path, images=tmp_path / "images")
    assert store.ready_keys == ["a", "b", "c", "d"]
    assert store.atoms("c").shape == store.atoms("d").shape == (20, 30)
    assert store.atoms("c").n_masks == store.atoms("d").n_masks == 0


def test_masks_without_their_table_are_never_taken_for_images(out, tmp_path):
    for folder in "ab":
        (out / folder / "metadata.csv").unlink()
    with pytest.raises(ExchangeError, match="say which by --format"):
        make(out, tmp_path)
    store, notes = make(out, tmp_path, format="amg")
    assert [store.atoms(key).n_masks for key in store.ready_keys] == [4, 4]
    assert any("predicted_iou of 8 masks" in note for note in notes)


def test_the_folder_of_one_image_is_told_from_the_folder_of_all(out, tmp_path):
    with pytest.raises(ExchangeError, match="it holds the masks of one image"):
        make(out / "a", tmp_path)


def test_a_pipe_in_place_of_a_table_costs_its_image_alone(out, tmp_path):
    (out / "a" / "metadata.csv").unlink()
    os.mkfifo(out / "a" / "metadata.csv")
    store, _ = make(out, tmp_path, format="amg")
    assert "b" in store.ready_keys
    with pytest.raises(ImageNotReady, match="not a regular file"):
        store.atoms("a")


@pytest.mark.parametrize("write", [write_folder, write_list])
def test_a_link_that_leads_nowhere_costs_its_image_at_most(tmp_path, random_masks, write):
    source, suffix = tmp_path / "out", ".json" if write is write_list else ""
    write(source / f"a{suffix}", random_masks(np.random.default_rng(0), 3, 20, 30), 0)
    write(source / f"b{suffix}", random_masks(np.random.default_rng(1), 3, 20, 30), 1)
    (source / f"c{suffix}").symlink_to("nowhere")
    store, _ = make(source, tmp_path)
    assert list(store.ready_keys) == ["a", "b"]

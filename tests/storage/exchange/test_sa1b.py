from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from samdeblur.storage import open_store
from samdeblur.storage.exchange.convert import ExchangeError, export_masks, import_masks
from samdeblur.storage.exchange.sa1b import relative_paths
from samdeblur.storage.names import FILE_NAME_BYTES

RLE = {"size": [3, 4], "counts": "1:1"}  # one zero, ten ones, one zero
GOOD = {"image": {"height": 3, "width": 4}, "annotations": [{"segmentation": RLE}]}


@pytest.fixture
def import_folder(tmp_path):
    """(name -> document or text) -> the store made of a folder of these files, and what was said."""

    def run(files):
        for name, document in files.items():
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document if isinstance(document, str) else json.dumps(document))
        notes = import_masks(tmp_path / "folder", tmp_path / "made.zarr", "sa-1b", "toy", "train", strict=True)
        return open_store(tmp_path / "made.zarr"), notes

    return run


def test_files_are_those_of_sa_1b(whole_store, tmp_path):
    store = open_store(whole_store.path)
    notes = export_masks(store, tmp_path / "masks", "sa-1b")
    files = {path.relative_to(tmp_path / "masks").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"{key}.json" for key in store.ready_keys}
    key = "GOPR0372_07_00/000048"
    document = json.loads((tmp_path / "masks" / f"{key}.json").read_text())
    assert document["image"] == {"image_id": 2, "width": 50, "height": 40, "file_name": key}
    records = store.records(key)
    assert len(document["annotations"]) == 5
    for number, annotation in enumerate(document["annotations"]):
        assert annotation["id"] == number + 1
        assert annotation["segmentation"]["size"] == [40, 50]
        assert annotation["area"] == records["area"][number]
        assert annotation["bbox"] == [records[f"bbox_{side}"][number] for side in "xywh"]
        assert annotation["predicted_iou"] == records["predicted_iou"][number]
        assert annotation["stability_score"] == records["stability_score"][number]
        assert annotation["point_coords"] == [[records["point_x"][number], records["point_y"][number]]]
        assert "crop_box" not in annotation  # not known: NaN is no JSON
    assert notes == [
        "sa-1b holds no recipe and no digests of the images",
        "3 quarantined images left out",
        "sa-1b holds masks alone: the pixels of 6 images are left out",
    ]


def test_the_order_of_images_is_not_in_the_files(tmp_path):
    images = [{"id": key, "height": 3, "width": 4} for key in "ba"]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    import_masks(tmp_path / "coco.json", tmp_path / "made.zarr", None, "toy", "train")
    notes = export_masks(open_store(tmp_path / "made.zarr"), tmp_path / "masks", "sa-1b")
    assert "sa-1b has no order of images: these 2 come back sorted by name" in notes


LONG = ["夜" * 90, "x" * 248, f"{'y' * 230}/{'夜' * 80}", "short"]


@pytest.mark.parametrize("form", ["sa-1b", "ome-zarr"])
def test_names_too_long_for_files_are_shortened_and_come_back(tmp_path, form):
    images = [{"id": number, "file_name": key, "height": 3, "width": 4} for number, key in enumerate(LONG)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    import_masks(tmp_path / "coco.json", tmp_path / "made.zarr", None, "toy", "train")
    export_masks(open_store(tmp_path / "made.zarr"), tmp_path / "masks", form)
    names = [part for path in (tmp_path / "masks").rglob("*") for part in path.relative_to(tmp_path).parts]
    assert max(len(name.encode()) for name in names) <= FILE_NAME_BYTES + len(".json")
    if form == "sa-1b":
        import_masks(tmp_path / "masks", tmp_path / "again.zarr", None, "toy", "train")
        assert sorted(open_store(tmp_path / "again.zarr").keys) == sorted(LONG)


def test_a_file_with_a_long_name_of_its_own_keeps_it(import_folder):
    names = ["x" * 198, "y" * 200]
    other = {"image": GOOD["image"] | {"file_name": "elsewhere"}, "annotations": []}
    store, _ = import_folder({f"{names[0]}.json": GOOD, f"{names[1]}.json": other, "a.json": GOOD})
    assert store.keys == ["a", *names]


def test_a_folder_is_read_sorted_and_named_by_its_digest(import_folder, tmp_path):
    crop_box, point = [0.0, 0.5, 4.0, 2.5], [[1 / 3, 2.0]]
    full = {
        "segmentation": RLE,
        "crop_box": crop_box,
        "point_coords": point,
        "predicted_iou": 0.1,
        "stability_score": 1,
    }
    files = {"b.json": GOOD, "a/c.JSON": GOOD | {"annotations": [full]}, "notes.txt": "no masks"}
    store, notes = import_folder(files)
    assert store.keys == store.ready_keys == ["a/c", "b"]
    records = store.records("a/c")
    assert [records[f"crop_box_{side}"][0] for side in "xywh"] == crop_box
    assert [records["point_x"][0], records["point_y"][0]] == point[0]
    assert (records["predicted_iou"][0], records["stability_score"][0]) == (0.1, 1.0)
    assert np.isnan(store.records("b")["crop_box_x"]).all()
    contents = {name: (tmp_path / "folder" / name).read_bytes() for name in sorted(files)}
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    expected = {"format": "sa-1b", "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    assert store.header.recipe == {"imported": expected}
    assert "not known: predicted_iou of 1 mask, stability_score of 1 mask, point of 1 mask, crop box of 1 mask" in notes


def test_one_bad_file_does_not_spoil_the_others(import_folder):
    bad = {
        "cut": json.dumps(GOOD)[:-5],
        "deep": "[" * 100_000,
        "list": [],
        "no_image": {"annotations": []},
        "no_annotations": {"image": GOOD["image"]},
        "no_masks": GOOD | {"annotations": {}},
        "negative": GOOD | {"image": {"height": -3, "width": 4}},
        "huge": GOOD | {"image": {"height": 3, "width": 10**30}},
        "other_size": GOOD | {"image": {"height": 4, "width": 3}},
        "counts": GOOD | {"annotations": [{"segmentation": RLE | {"counts": 7}}]},
        "not_objects": GOOD | {"annotations": [7]},
        "too_many": GOOD | {"annotations": GOOD["annotations"] * 4097},
    }
    store, notes = import_folder({f"{name}.json": document for name, document in bad.items()} | {"sound.json": GOOD})
    assert store.ready_keys == ["sound"]
    assert store.atoms("sound").mask_areas().tolist() == [10]
    assert all(store.error(key) for key in bad)
    assert "nested too deeply" in store.error("deep")
    assert "4097 masks" in store.error("too_many")
    assert any(note.startswith("12 of 13 images quarantined; the first is counts: annotation 1 of 1") for note in notes)


def test_a_folder_without_any_image_of_use_is_refused(import_folder, tmp_path):
    with pytest.raises(ExchangeError, match="no image of 2 can be used, as a: not JSON"):
        import_folder({"a.json": "{", "b.json": "{"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExchangeError, match="no images in it"):
        import_masks(tmp_path / "empty", tmp_path / "made.zarr", "sa-1b", "toy", "train")
    with pytest.raises(ExchangeError, match=r"none of .json, .png, .npz"):
        import_masks(tmp_path / "empty", tmp_path / "made.zarr", None, "toy", "train")


@pytest.mark.parametrize(
    "key", ["/etc/masks", "../a", "a/../../b", "a/..", "./a", "a//b", "a/", "a\\..\\b", "..", "a\0"]
)
def test_a_key_never_leads_out_of_the_folder(key):
    with pytest.raises(ExchangeError, match="not a relative path"):
        relative_paths(["fine", key])


def test_a_key_is_not_both_a_file_and_a_folder():
    assert list(map(str, relative_paths(["a", "a/b", "a..b", "c.json"]).values())) == [
        "a.json",
        "a/b.json",
        "a..b.json",
        "c.json.json",
    ]
    with pytest.raises(ExchangeError, match="named like its folder"):
        relative_paths(["a", "a.json/b"])


def test_what_lies_at_the_target_is_kept(whole_store, tmp_path):
    store = open_store(whole_store.path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "notes").write_text("mine")
    with pytest.raises(ExchangeError, match="not an empty folder"):
        export_masks(store, tmp_path / "masks", "sa-1b")
    assert [path.name for path in tmp_path.rglob("*")] == ["masks", "notes"]
    (tmp_path / "masks" / "notes").unlink()
    export_masks(store, tmp_path / "masks", "sa-1b")
    assert len(list(tmp_path.rglob("*.json"))) == len(store.ready_keys)

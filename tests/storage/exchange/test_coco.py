from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import DATA
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samdeblur.storage import StoreError, open_store
from samdeblur.storage.exchange.convert import (
    EXPORTS,
    FORMATS,
    ExchangeError,
    detect_format,
    export_masks,
    import_masks,
)
from samdeblur.storage.format.layout import pixel_digest
from samdeblur.storage.sharing.verify import verify_store

# pycocotools 2.0.11 with numpy 2, when it decodes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MASKS = DATA / "masks"
RLE = {"size": [3, 4], "counts": "1:1"}  # one zero, ten ones, one zero


def annotation(image_id=1, **more):
    return {"image_id": image_id, "category_id": 1, "segmentation": RLE} | more


def instances(*images, annotations=(), **more):
    return {"images": list(images), "annotations": list(annotations)} | more


WHOLE = ("coco-instances", "parquet")  # hold recipe and digests


@pytest.fixture
def import_json(tmp_path):
    """(document, **options) -> the store made of it and what was said."""

    def run(document, **options):
        path = tmp_path / "masks.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        notes = import_masks(path, tmp_path / "made.zarr", None, "toy", "train", **({"strict": True} | options))
        return open_store(tmp_path / "made.zarr"), notes

    return run


@pytest.fixture(scope="session")
def exported(whole_store, tmp_path_factory):
    """The complete store in every format: format -> (path, what was said)."""
    folder = tmp_path_factory.mktemp("exported")
    store = open_store(whole_store.path)
    made = {}
    for format in EXPORTS:
        seen: list[int] = []
        made[format] = folder / format, export_masks(store, folder / format, format, seen.append)
        assert sum(seen) == len(store.ready_keys)
        assert [path.name for path in folder.iterdir()] == sorted(made) or len(made) > 1
    assert not list(folder.rglob("*.partial"))
    return made


@pytest.mark.parametrize("format", [format for format in EXPORTS if format in FORMATS])
def test_what_is_exported_comes_back_the_same(format, exported, whole_store, tmp_path):
    path, _ = exported[format]
    assert detect_format(path) == format
    import_masks(path, tmp_path / "back.zarr", None, "gopro", "train")
    mine, theirs = open_store(tmp_path / "back.zarr"), open_store(whole_store.path)
    assert list(verify_store(mine.path)) == []
    expected = theirs.ready_keys
    if format == "coco-results":
        expected = [key for key in expected if key != "scene/without_masks"]
    assert mine.keys == mine.ready_keys == (sorted(expected) if format == "sa-1b" else expected)
    for key in expected:
        assert mine.shape(key) == theirs.shape(key)
        assert mine.atoms(key) == theirs.atoms(key)
        for name, column in theirs.records(key).items():
            assert np.array_equal(mine.records(key)[name], column, equal_nan=True), name
        if format in WHOLE:
            assert mine.digest(key) == theirs.digest(key)
    claims = {"claims": whole_store.header.recipe} if format in WHOLE else {}
    assert mine.header.recipe["imported"].items() >= ({"format": format} | claims).items()
    assert mine.header.digest == ("pixels" if format in WHOLE else "none")


def test_exports_say_what_they_leave_out(exported):
    for format, (_, notes) in exported.items():
        assert "3 quarantined images left out" in notes, format
        assert any("pixels of 6 images are left out" in note for note in notes) == (format != "ome-zarr")
        assert any("no recipe" in note for note in notes) == (format not in (*WHOLE, "ome-zarr"))
    assert "coco-results lists no images: 1 image without masks left out" in exported["coco-results"][1]


def test_pycocotools_reads_what_is_exported(exported, whole_store, capsys):
    coco = COCO(str(exported["coco-instances"][0]))
    results = coco.loadRes(str(exported["coco-results"][0]))
    for image_id, image in coco.imgs.items():
        masks = whole_store.masks[image["file_name"]]
        assert whole_store.keys[image_id - 1] == image["file_name"]
        for read in (coco, results):
            found = read.loadAnns(read.getAnnIds(imgIds=[image_id]))
            assert [item["area"] for item in found] == masks.sum(axis=(1, 2)).tolist()
            assert all(np.array_equal(read.annToMask(item), mask) for item, mask in zip(found, masks, strict=True))
    scores = [item["score"] for item in results.anns.values()]
    assert scores == [item["predicted_iou"] for item in coco.anns.values()]


@pytest.mark.parametrize("name", ["coco_fakesegm", "sav"])
def test_real_masks_are_those_that_pycocotools_decodes(name, tmp_path):
    results = json.loads((MASKS / f"{name}.json").read_text())
    notes = import_masks(MASKS / f"{name}.json", tmp_path / "real.zarr", None, name, "test")
    store = open_store(tmp_path / "real.zarr")
    keys = [result.get("file_name", str(result["image_id"])) for result in results]
    assert store.keys == list(dict.fromkeys(keys))
    for key in store.keys:
        rles = [result["segmentation"] for result, name in zip(results, keys, strict=True) if name == key]
        masks = coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)
        assert np.array_equal(store.atoms(key).to_masks(), masks)
        assert store.records(key)["area"].tolist() == coco_mask.area(rles).tolist()
    export_masks(store, tmp_path / "again.json", "coco-results")
    import_masks(tmp_path / "again.json", tmp_path / "again.zarr", None, name, "test")
    again = open_store(tmp_path / "again.zarr")
    assert again.keys == store.keys
    assert all(again.atoms(key) == store.atoms(key) for key in store.keys)
    if name == "sav":
        scores = np.concatenate([store.records(key)["stability_score"] for key in store.keys])
        assert scores.tolist() == [result["stability_score"] for result in results]
        assert any("predicted_iou of 18 masks, point of 18" in note for note in notes)
    else:
        assert any("score: those of 70 masks are dropped" in note for note in notes)
        assert any("categories" in note for note in notes)


def test_every_form_of_segmentation_is_read(import_json):
    polygon = [[0, 0, 3, 0, 3, 2, 0, 2]]
    empty = {"size": [3, 4], "counts": [12]}
    store, _ = import_json(
        instances(
            {"id": "b", "height": 3, "width": 4},
            {"id": 1, "height": 3, "width": 4, "file_name": "été/1"},
            annotations=[
                annotation(1, segmentation=polygon, iscrowd=1, area=99, bbox=[9, 9, 9, 9]),
                annotation("b"),
                annotation(1, segmentation=empty, point_coords=[[1.5, None]], predicted_iou=None),
                annotation(1, crop_box=[0, 0, 4, 3], predicted_iou=0.1, point_coords=[]),
            ],
        )
    )
    assert store.keys == ["b", "été/1"]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, 3, 4)))
    assert store.counts[:, 0].tolist() == [1, 3]
    masks = store.atoms("été/1").to_masks()
    assert np.array_equal(masks[0], expected)
    assert masks.sum(axis=(1, 2)).tolist() == [expected.sum(), 0, 10]
    records = store.records("été/1")
    assert records["area"].tolist() == [expected.sum(), 0, 10]
    assert np.array_equal(records["point_x"], [np.nan, 1.5, np.nan], equal_nan=True)
    assert np.array_equal(records["predicted_iou"], [np.nan, np.nan, 0.1], equal_nan=True)
    assert records["crop_box_w"][2] == 4


IMAGE = {"id": 1, "height": 3, "width": 4, "file_name": "a"}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ('{"images": [', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "not JSON"),
        ("\0\1", "not JSON"),
        ("{}", "images are not a list"),
        ({"images": [], "annotations": []}, "no images"),
        ("[]", "no images"),
        ("[7]", "a result is 7"),
        (instances(7), "an image is 7"),
        (instances(IMAGE, annotations=[None]), "an annotation is None"),
        (instances(IMAGE, annotations=[annotation(2)]), "belongs to image 2"),
        (instances(IMAGE, annotations=[annotation([])]), "image_id is a list"),
        (instances(IMAGE, IMAGE | {"file_name": "b"}), "'a' and 'b' share the id 1"),
        (instances(IMAGE, IMAGE | {"id": 2}), "two images are named 'a'"),
        (instances(IMAGE | {"file_name": ""}), "'' cannot be the name"),
        (instances(IMAGE | {"file_name": "a\0b"}), "cannot be the name"),
        (instances(IMAGE | {"file_name": "\ud800"}), "cannot be the name"),
        (instances(IMAGE | {"file_name": "a" * 1025}), "cannot be the name"),
        (instances(IMAGE | {"file_name": 7}), "file_name of image 1"),
        (instances(IMAGE | {"id": True}), "id is True"),
        (instances(IMAGE | {"height": -3}), "4 and -3, not positive"),
        (instances(IMAGE | {"height": 3.5}), "4 and 3.5, not positive"),
        (instances(IMAGE | {"width": 10**12}), "more than a store can hold"),
        (instances(IMAGE | {"width": 1 << 15}, IMAGE | {"id": 2, "file_name": "b", "height": 1 << 15}), "divide them"),
        ([annotation(1, file_name="a"), annotation(1, file_name="b")], "two names, a and b"),
        ([annotation(1, file_name="a"), annotation(2, file_name="a")], "2 images are named 'a'"),
        ([annotation(1, segmentation=[[0, 0, 1, 0, 1, 1]])], "no mask in RLE"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, str) else "",
)
def test_a_file_of_no_use_is_refused_in_one_line(document, reason, import_json, tmp_path):
    with pytest.raises(ExchangeError, match=r"masks\.json: cannot be imported|masks\.json: not JSON") as caught:
        import_json(document)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made.zarr").exists()


def test_masks_are_never_given_to_another_image_of_a_like_id(import_json):
    names = {"1": "a", "01": "b", 2: "c", 3: "d"}
    images = [IMAGE | {"id": id, "file_name": name} for id, name in names.items()]
    images.append(IMAGE | {"id": 2, "file_name": "e"})
    listed = [1, "1", "01", "01", 2, 3, 3.0, "3"]
    store, notes = import_json(instances(*images, annotations=[*map(annotation, listed)]), strict=False)
    assert {key: int(n) for key, n in zip(store.keys, store.counts[:, 0], strict=True)} == {"a": 1, "b": 2, "d": 3}
    assert any("left out: 3 of no use, the first: 'c' and 'e' share the id 2" in note for note in notes)


def test_results_are_named_by_the_id_as_it_is_written(import_json):
    store, _ = import_json([annotation("0001"), annotation("1"), annotation(1), annotation(2.0)], strict=False)
    assert {key: int(n) for key, n in zip(store.keys, store.counts[:, 0], strict=True)} == {"0001": 1, "1": 2, "2": 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"segmentation": RLE | {"counts": "1:"}}, "counts that do not fill the 12 pixels"),
        ({"segmentation": RLE | {"size": [4, 3]}}, "height x width 4 x 3, the image of 3 x 4"),
        ({"segmentation": None}, "neither RLE nor polygons"),
        ({"predicted_iou": "high"}, "predicted_iou is high, not a number"),
        ({"predicted_iou": 10**400}, "beyond the numbers"),
        ({"stability_score": True}, "stability_score is True"),
        ({"point_coords": 7}, "point_coords are not a list"),
        ({"point_coords": [[1]]}, "not 2 numbers"),
        ({"crop_box": [1, 2, 3]}, "not 4 numbers"),
        ({"crop_box": [1, 2, 3, []]}, "crop_box is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_with_a_bad_annotation_is_quarantined(bad, reason, import_json):
    images = IMAGE, IMAGE | {"id": 2, "file_name": "b"}
    store, notes = import_json(instances(*images, annotations=[annotation(1), annotation(2), annotation(2) | bad]))
    assert store.ready_keys == ["a"]
    assert store.error("b").startswith("annotation 2 of 2: ")
    assert reason in store.error("b")
    assert notes[-1].startswith("1 of 2 images quarantined; the first is b: annotation 2 of 2")
    assert list(verify_store(store.path)) == []


@pytest.mark.parametrize(
    "recipe", [float("nan"), "\ud800", "x" * (1 << 20), json.loads("[" * 100 + "]" * 100)], ids=type
)
def test_a_recipe_that_no_store_can_hold_is_left_out(recipe, import_json):
    store, notes = import_json(instances(IMAGE, info={"samdeblur": {"recipe": recipe}}))
    assert set(store.header.recipe["imported"]) == {"format", "sha256"}
    assert any("recipe that the file gives is not kept" in note for note in notes)


def test_too_many_masks_are_quarantined(import_json):
    images = IMAGE, IMAGE | {"id": 2, "file_name": "b"}
    store, _ = import_json(instances(*images, annotations=[annotation(2)] * 4097))
    assert store.ready_keys == ["a"]
    assert "4097 masks" in store.error("b")


def test_digests_are_kept_only_when_every_image_has_one(import_json, tmp_path):
    info = {"samdeblur": {"digest": "pixels"}}
    known = IMAGE | {"digest": "ab" * 32}
    store, notes = import_json(instances(known, IMAGE | {"id": 2, "file_name": "b", "digest": "ab"}, info=info))
    assert store.header.digest == "none"
    assert any("no digests" in note for note in notes)
    (tmp_path / "made.zarr").rename(tmp_path / "first.zarr")
    store, notes = import_json(instances(known, info=info))
    assert (store.header.digest, store.digest("a")) == ("pixels", bytes.fromhex("ab" * 32))
    assert not any("no digests" in note for note in notes)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_give_sizes_and_digests(suffix, import_json, tmp_path):
    image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    (tmp_path / "images").mkdir()
    for name, pixels in {"a": image, "b": image[:2]}.items():
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}{suffix}")
    images = [IMAGE, IMAGE | {"id": 2, "file_name": "b"}, IMAGE | {"id": 3, "file_name": "c"}]
    images.append(IMAGE | {"id": 4, "file_name": f"a{suffix}"})
    store, _ = import_json(instances(*images), images=tmp_path / "images")
    content = (tmp_path / "images" / f"a{suffix}").read_bytes()
    expected = pixel_digest(image) if suffix == ".png" else hashlib.sha256(content).digest()
    assert store.ready_keys == ["a", f"a{suffix}"]
    assert store.digest("a") == expected
    assert store.header.digest == ("pixels" if suffix == ".png" else "file")
    assert "the image is 4x2, its masks are 4x3" in store.error("b")
    assert "no image of this name" in store.error("c")


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", "a\\b"])
def test_names_that_lead_out_are_refused(import_json, name):
    with pytest.raises(ExchangeError, match="leads out"):
        import_json(instances(IMAGE | {"file_name": name}))


def test_images_must_be_those_that_the_file_claims(import_json, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    info = {"samdeblur": {"digest": "pixels"}}
    store, _ = import_json(instances(IMAGE | {"digest": "ab" * 32}, info=info), images=tmp_path)
    assert "not the image that the masks were made of" in store.error("a")
    with pytest.raises(ExchangeError, match="none of 1 images is there"):
        import_json(instances(IMAGE), images=Path(__file__).parent)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        import_json(instances(IMAGE), images=tmp_path / "elsewhere")


def test_an_unfinished_store_is_not_exported(finished_store, tmp_path):
    for format in EXPORTS:
        with pytest.raises(StoreError, match="1 of 9 images pending; finish it"):
            export_masks(open_store(finished_store.path), tmp_path / "masks", format)
    with pytest.raises(ExchangeError, match="unknown format 'npz'"):
        export_masks(open_store(finished_store.path), tmp_path / "masks", "npz")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(whole_store, tmp_path, monkeypatch):
    (tmp_path / "masks.json").write_text("old")
    store = open_store(whole_store.path)
    monkeypatch.setattr(store, "records", lambda key: {}[key])
    with pytest.raises(KeyError):
        export_masks(store, tmp_path / "masks.json", "coco-instances")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"masks.json": "old"}


def test_an_import_does_not_replace_another_store(import_json):
    import_json(instances(IMAGE))
    with pytest.raises(StoreError, match="is there already"):
        import_json(instances(IMAGE | {"file_name": "b"}))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_any_unicode_encoding(encoding, tmp_path):
    key = "ä" * 40  # longer than what the format is recognised by
    document = {"key of 64 bytes": key} | instances({"id": 1, "file_name": f"{key}.png", "height": 3, "width": 4})
    (tmp_path / "masks.json").write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    import_masks(tmp_path / "masks.json", tmp_path / "made.zarr", None, "toy", "train")
    assert open_store(tmp_path / "made.zarr").keys == [f"{key}.png"]


@pytest.mark.parametrize("form", [None, "parquet"])
def test_a_folder_of_parquet_is_refused_with_what_to_do(form, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ExchangeError, match=r"parts: a folder; Parquet is read from one file: write pyarrow"):
        import_masks(tmp_path / "parts", tmp_path / "made.zarr", form, "toy", "train")


def test_formats_and_sources_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "masks.json").write_text("[]")
    for source, format, reason in [
        (tmp_path / "masks.json", "sa-1b", "sa-1b is a folder"),
        (tmp_path, "coco-results", "coco-results is a file"),
        (tmp_path, "labelme", "unknown format 'labelme'"),
    ]:
        with pytest.raises(ExchangeError, match=reason):
            import_masks(source, tmp_path / "made.zarr", format, "toy", "train")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_masks(tmp_path / "nowhere", tmp_path / "made.zarr", None, "toy", "train")

"""Masks as other tools write and want them: damaged COCO, torchvision, pycocotools, Parquet, OME-Zarr, zstd in HDF5."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
import zarr
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samdeblur.storage import ImageNotReady, open_store
from samdeblur.storage.exchange.annotations import LEFT_OUT
from samdeblur.storage.exchange.convert import ExchangeError, export_masks, import_masks
from samdeblur.storage.exchange.originals import image_names
from samdeblur.storage.sharing.export import export_hdf5
from samdeblur.storage.sharing.verify import verify_store

IMAGES = [
    {"id": 1, "file_name": "a.png", "height": 6, "width": 8},
    {"id": 2, "file_name": "b.png", "height": 4, "width": 4},
]
MASKS = [
    {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [3, 5, 40]}},
    {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
    {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {"size": [4, 4], "counts": [1, 2, 13]}},
]
CATEGORIES = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]


@pytest.fixture
def read(tmp_path):
    def run(images=IMAGES, masks=MASKS, **options):
        path = tmp_path / "masks.json"
        path.write_text(json.dumps({"images": images, "annotations": masks, "categories": CATEGORIES}))
        notes = import_masks(path, tmp_path / "made.zarr", None, "toy", "train", **options)
        assert list(verify_store(tmp_path / "made.zarr")) == []
        return open_store(tmp_path / "made.zarr"), [note for note in notes if note.startswith(LEFT_OUT)]

    return run


def counts(store):
    return {key: store.atoms(key).n_masks for key in store.ready_keys}


FAULTS = {
    "an orphan": (IMAGES, [*MASKS, MASKS[0] | {"image_id": 99}], "99"),
    "ids as 1.0": ([image | {"id": float(image["id"])} for image in IMAGES], MASKS, ""),
    "ids as text": (IMAGES, [mask | {"image_id": str(mask["image_id"])} for mask in MASKS], ""),
    "sizes as 6.0": ([image | {"height": float(image["height"])} for image in IMAGES], MASKS, ""),
    "a mask of another size": (
        IMAGES,
        [*MASKS, MASKS[0] | {"segmentation": {"size": [5, 5], "counts": [25]}}],
        "a.png",
    ),
    "a mask without a form": (IMAGES, [*MASKS, MASKS[0] | {"segmentation": None}], "annotation 3 of 3"),
    "a score that is text": (IMAGES, [*MASKS, MASKS[0] | {"predicted_iou": "high"}], "predicted_iou"),
    "an annotation that is a number": (IMAGES, [*MASKS, 7], "annotation 4 of 4"),
    "an image without an id": ([*IMAGES, {"file_name": "c.png"}], MASKS, "image 3 of 3"),
    "a name twice": ([*IMAGES, IMAGES[0] | {"id": 3}], MASKS, "are named 'a.png'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_good_part_of_a_file_is_imported_and_the_rest_named(read, tmp_path, fault):
    images, masks, words = FAULTS[fault]
    store, left_out = read(images, masks)
    assert counts(store) == {"a.png": 2, "b.png": 1}
    assert len(left_out) == bool(words)
    assert all(f"{LEFT_OUT} 1 " in note and words in note for note in left_out)


def test_a_file_name_of_windows_is_a_path(read):
    store, _ = read([IMAGES[0] | {"file_name": "street\\a.png"}, IMAGES[1] | {"file_name": "../b.png"}])
    assert store.ready_keys == ["street/a.png", "b.png"]


def test_strict_reading_refuses_the_file(read):
    with pytest.raises(ExchangeError, match="not among its images"):
        read(IMAGES, [*MASKS, MASKS[0] | {"image_id": 99}], strict=True)


@pytest.mark.parametrize(
    ("wanted", "expected"), [(["person"], {"a.png": 1, "b.png": 0}), (["1"], {"a.png": 1, "b.png": 1})]
)
def test_categories_are_chosen_by_name_or_id(read, wanted, expected):
    assert counts(read(categories=wanted)[0]) == expected
    with pytest.raises(ExchangeError, match="choose from car, person"):
        read(categories=["dog"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"shapes": [], "imagePath": "a.png"}', "Labelme"),
        ('{"images": [], "annotations": [{"segments_info": [], "file_name": "a.png"}]}', "panoptic"),
        ('{"_via_img_metadata": {}}', "VGG"),
        ('<?xml version="1.0"?><annotations></annotations>', "CVAT"),
    ],
)
def test_what_to_export_instead_is_said(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ExchangeError, match=words):
        import_masks(tmp_path / "x.json", tmp_path / "made.zarr", None, "toy", "train")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_torchvision_and_pycocotools_take_what_is_exported(whole_store, tmp_path):
    from torchvision.datasets import CocoDetection

    store = open_store(whole_store.path)
    for key in store.ready_keys:
        path = tmp_path / "images" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", store.image("blurred", key))[1].tofile(path)
    names = image_names(store.ready_keys, tmp_path / "images", "")
    export_masks(store, tmp_path / "m.json", "coco-instances", file_name=names, licence="CC BY 4.0")
    export_masks(store, tmp_path / "r.json", "coco-results")
    document = json.loads((tmp_path / "m.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["licenses"] == [{"id": 1, "name": "CC BY 4.0", "url": ""}]
    assert document["categories"][0]["supercategory"] == "object"

    dataset = CocoDetection(tmp_path / "images", tmp_path / "m.json")
    assert len(dataset) == len(store.ready_keys)
    for (image, objects), number in zip((dataset[i] for i in range(len(dataset))), dataset.ids, strict=True):
        key = store.keys[number - 1]
        assert np.array_equal(np.array(image)[..., ::-1], store.image("blurred", key))
        masks = [dataset.coco.annToMask(annotation) for annotation in objects]
        assert np.array_equal(np.array(masks, bool).reshape(-1, *store.shape(key)), store.atoms(key).to_masks())

    truth = COCO(str(tmp_path / "m.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "r.json")), "segm")
    evaluation.params.maxDets = [1, 10, 4096]
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval["recall"].max() == 1

    import_masks(tmp_path / "m.json", tmp_path / "back.zarr", None, "gopro", "train")
    assert open_store(tmp_path / "back.zarr").ready_keys == store.ready_keys  # by key, not by file name


def test_names_of_images_may_be_given_by_their_suffix():
    name = image_names(["a", "b.png"], None, ".png")
    assert [name("a"), name("b.png")] == ["a.png", "b.png"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_parquet_loads_elsewhere_with_a_row_per_mask(whole_store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    store = open_store(whole_store.path)
    export_masks(store, tmp_path / "m.parquet", "parquet")
    rows = parquet.read_table(tmp_path / "m.parquet").to_pylist()
    assert len(rows) == sum(store.atoms(key).n_masks for key in store.ready_keys)
    from pycocotools import mask as coco_mask

    for key in store.ready_keys:
        mine = [row for row in rows if row["image"] == key]
        masks = [coco_mask.decode({"size": [row["height"], row["width"]], "counts": row["counts"]}) for row in mine]
        assert np.array_equal(np.array(masks, bool).reshape(-1, *store.shape(key)), store.atoms(key).to_masks())
        assert [row["area"] for row in mine] == store.records(key)["area"].tolist()


@pytest.mark.parametrize("images", [True, False])
def test_ome_zarr_is_valid_and_its_labels_are_the_atoms(whole_store, tmp_path, images):
    validator = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models is not installed")
    store = open_store(whole_store.path)
    if not images:
        from samdeblur.storage.sharing.export import export_zip

        export_zip(whole_store.path, tmp_path / "s.zip")
        store = open_store(tmp_path / "s.zip")
    export_masks(store, tmp_path / "o.zarr", "ome-zarr")
    for key in store.ready_keys:
        group = zarr.open_group(tmp_path / "o.zarr" / key, mode="r")
        found = validator.open_ome_zarr(group, version="0.5")
        label = validator.open_ome_zarr(group["labels/atoms"], version="0.5")
        assert (type(found).__name__, type(label).__name__) == ("Image", "ImageLabel")
        atoms, records = store.atoms(key), store.records(key)
        plane = group["labels/atoms/0"][...]
        assert np.array_equal(plane, atoms.atoms)
        dense = np.zeros((atoms.n_masks, *atoms.shape), bool)
        for item in group["labels/atoms"].attrs["ome"]["image-label"].get("properties", []):
            for mask, record in zip(item["masks"], item["records"], strict=True):
                dense[mask] |= plane == item["label-value"]
                assert record["area"] == records["area"][mask]
        assert np.array_equal(dense, atoms.to_masks())


def test_hdf5_with_zstd_is_read_back(whole_store, tmp_path):
    pytest.importorskip("hdf5plugin", reason="the extra `hdf5` is not installed")
    export_hdf5(whole_store.path, tmp_path / "s.h5", images=True, codec="zstd")
    store, expected = open_store(tmp_path / "s.h5"), open_store(whole_store.path)
    for key in expected.ready_keys:
        assert store.atoms(key) == expected.atoms(key)
        assert np.array_equal(store.image("sharp", key), expected.image("sharp", key))
    assert list(verify_store(tmp_path / "s.h5")) == []


def test_columns_of_other_kinds_cost_a_row_at_most(tmp_path, random_masks):
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    import pyarrow.parquet as parquet

    masks = random_masks(np.random.default_rng(0), 3, 20, 30)
    counts = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in masks]
    table = {"image": ["a", None, "a"], "height": [20.0] * 3, "width": [30.0] * 3, "counts": counts}
    decimals = arrow.array(["0.5", "0.6", "0.7"]).cast(arrow.decimal128(5, 2))
    parquet.write_table(arrow.table(table | {"predicted_iou": decimals}), tmp_path / "decimal.parquet")
    words = table | {"image": ["a"] * 3, "predicted_iou": ["x", "y", "z"]}
    parquet.write_table(arrow.table(words), tmp_path / "words.parquet")
    notes = import_masks(tmp_path / "decimal.parquet", tmp_path / "s.zarr", None, "toy", "train")
    store = open_store(tmp_path / "s.zarr")
    assert np.array_equal(store.atoms("a").to_masks(), masks[[0, 2]])
    assert store.records("a")["predicted_iou"].tolist() == [0.5, 0.7]
    assert any("row 2 of 3: its image is not a text" in note for note in notes)
    import_masks(tmp_path / "words.parquet", tmp_path / "t.zarr", None, "toy", "train", strict=True)
    with pytest.raises(ImageNotReady, match="predicted_iou is x, not a number"):
        open_store(tmp_path / "t.zarr").atoms("a")


@pytest.mark.parametrize("name", ["m.json", "m.parquet"])
def test_a_pipe_is_no_file_of_masks(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises((ExchangeError, OSError), match="regular file"):
        import_masks(tmp_path / name, tmp_path / "s.zarr", None, "toy", "train")

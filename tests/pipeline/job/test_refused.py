"""Other recipes, sources, sizes and weights on a store that exists, or before one is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_jobs import CPU, KEYS, TWO, run, save_network

from samdeblur.models import CheckpointError
from samdeblur.pipeline import (
    PrepSettings,
    StoreOptions,
    Weights,
    open_source,
    prepare,
    status,
)
from samdeblur.pipeline.job import coordinator
from samdeblur.pipeline.segmenters.mask_generator import MaskGenerator
from samdeblur.storage import StoreError, open_store
from samdeblur.storage.writing.commits import run_folder


def test_a_source_that_lists_its_images_in_another_order_is_refused_or_changes_nothing(
    folder, undisturbed, tmp_path, monkeypatch
):
    source, path = open_source(str(folder), "test"), tmp_path / "toy.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        with pytest.raises(TypeError):
            prepare(source, path, CPU, TWO, 1)
    try:
        prepare(source.subset(reversed(source.keys)), path, CPU, TWO, 1)
    except StoreError:
        return
    assert undisturbed.at(path).files() == undisturbed.files()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"predeblur": Weights("/x", "ab" * 32)}, "pre-deblurring: was none, now network abababababab"),
        ({"sam": Weights("/x", "ab" * 32)}, "segmenter: was superpixels, now sam"),
    ],
    ids=["predeblur", "sam"],
)
def test_another_recipe_is_refused_with_what_differs(folder, undisturbed, change, differs):
    before = undisturbed.files()
    with pytest.raises(StoreError) as caught:
        run(folder, undisturbed.path, replace(CPU, **change))
    assert differs in str(caught.value)
    assert str(undisturbed.path) in str(caught.value)
    assert undisturbed.files() == before


def test_other_settings_of_sam_are_refused_one_by_one(tmp_path, write_pairs, random_sam, dense_boxes):
    folder = write_pairs(tmp_path / "one", {"a": (40, 40)})
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    loose = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    settings = PrepSettings(sam=Weights.of_sam(str(tmp_path / "sam.pth")), sam_settings={"points_per_side": 2} | loose)
    settings = replace(settings, channel_order="bgr", device="cpu")
    path = tmp_path / "one.zarr"
    run(folder, path, settings)
    pair = open_source(str(folder), "test").read("a")
    generator = MaskGenerator(random_sam(), **settings.sam_settings)
    atoms, records = generator.generate(np.ascontiguousarray(pair.blurred[..., ::-1]))
    store = open_store(path)
    assert store.atoms("a") == atoms
    assert atoms.n_masks > 1
    boxes = dense_boxes(atoms.to_masks())  # where the reference's are a pixel narrower
    records |= {f"bbox_{side}": boxes[:, column] for column, side in enumerate("xywh")}
    for name, values in store.records("a").items():
        assert np.array_equal(values, records[name], equal_nan=True), name
    for change, differs in (
        ({"sam_settings": {"points_per_side": 3} | loose}, r"\(segmenter.points_per_side: was 2, now 3\)"),
        ({"sam_settings": loose}, r"\(segmenter.points_per_side: was 2, now 32\)"),
        ({"channel_order": "rgb"}, r"\(segmenter.channel_order: was bgr, now rgb\)"),
        (
            {"sam": Weights("/x", "ab" * 32)},
            r"\(segmenter.checkpoint: was [0-9a-f]{12}\.\.\., now abababababab\.\.\.\)",
        ),
        (
            {"channel_order": "rgb", "sam_settings": {"points_per_side": 2} | loose | {"crop_n_layers": 1}},
            r"\(segmenter.channel_order: was bgr, now rgb; segmenter.crop_n_layers: was 0, now 1\)",
        ),
    ):
        with pytest.raises(StoreError, match=differs):
            run(folder, path, replace(settings, **change))


def _source_of(folder, **changes):
    return replace(open_source(str(folder), "test"), **changes)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (lambda f: _source_of(f, dataset="other"), TWO, "dataset is toy in the store, other was asked for"),
        (lambda f: _source_of(f, split="train"), TWO, "split is test in the store, train was asked for"),
        (lambda f: _source_of(f).subset(KEYS[1:]), TWO, "lists 5 images, the source 4 (first difference: a/1)"),
        (lambda f: _source_of(f, files=_renamed(f)), TWO, "lists 5 images, the source 5 (first difference: d)"),
        (_source_of, StoreOptions(images=False, block_size=2), "with images is True in the store, False was asked for"),
        (_source_of, StoreOptions(block_size=3), "block size is 2 in the store, 3 was asked for"),
    ],
    ids=["dataset", "split", "fewer images", "other images", "without images", "block size"],
)
def test_a_store_of_something_else_is_refused(folder, undisturbed, source, options, said):
    before = undisturbed.files()
    with pytest.raises(StoreError) as caught:
        prepare(source(folder), undisturbed.path, CPU, options, 1)
    assert said in str(caught.value)
    assert undisturbed.files() == before


def _renamed(folder):
    found = dict(open_source(str(folder), "test").files)
    return found | {"e": found.pop("d")}


def test_a_store_that_exists_keeps_its_block_size_when_none_is_asked_for(folder, undisturbed):
    assert run(folder, undisturbed.path, options=StoreOptions()).already_done == 5


def test_a_checkpoint_changed_after_planning_is_refused_and_no_store_is_made(folder, tmp_path):
    path = save_network(tmp_path / "net.safetensors", seed=1)
    settings = replace(CPU, predeblur=Weights.of_network(str(path)))
    save_network(path, seed=2)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: the file changed since the job was planned"):
        run(folder, tmp_path / "toy.zarr", settings)
    assert not (tmp_path / "toy.zarr").exists()


def test_a_checkpoint_changed_before_a_worker_loads_it_is_refused(folder, tmp_path, monkeypatch):
    path = save_network(tmp_path / "net.safetensors", seed=1)
    settings = replace(CPU, predeblur=Weights.of_network(str(path)))
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        with pytest.raises(TypeError):
            run(folder, tmp_path / "toy.zarr", settings)
    save_network(path, seed=2)
    with pytest.raises(CheckpointError, match="changed"):
        run(folder, tmp_path / "toy.zarr", settings)
    assert status(tmp_path / "toy.zarr").pending == 5


def test_weights_that_cannot_be_used_leave_no_store_behind(folder, tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"junk\.pth: not a checkpoint"):
        run(folder, tmp_path / "toy.zarr", replace(CPU, predeblur=Weights.of_network(str(tmp_path / "junk.pth"))))
    assert not (tmp_path / "toy.zarr").exists()
    assert not run_folder(tmp_path / "toy.zarr").exists()


def test_the_status_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such store"):
        status(tmp_path / "gone.zarr")

"""Stores that keep embeddings, and masks that are found in them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from samdeblur.pipeline import MaskGenerator, PrepSettings, StoreOptions, Weights, open_source, prepare
from samdeblur.pipeline.job.embeddings import require_embeddings
from samdeblur.pipeline.job.plan import block_tasks, ensure_store
from samdeblur.pipeline.job.worker import run_block
from samdeblur.storage import StoreError, open_store
from samdeblur.storage.sharing.export import export_hdf5, export_zip
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.combine import subset
from samdeblur.storage.writing.commits import Committer
from samdeblur.storage.writing.compare import store_differences

LOOSE = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
SHAPES = {"a": (40, 60), "b": (64, 33), "c": (51, 51), "d": (40, 60), "e": (37, 48)}
PLAIN, KEEP = StoreOptions(block_size=2), StoreOptions(block_size=2, embeddings=True)


def made(source, path, settings, options=PLAIN, blocks=None):
    """What `prepare` does, in this process; of the first so many blocks that are missing."""
    ensure_store(source, path, settings, options)
    committer = Committer(path)
    missing = committer.pending_blocks()[:blocks]
    committer.commit([run_block(task).staged for task in block_tasks(source, path, committer, missing, settings)])
    committer.close()
    return path


def contents(store):
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pairs):
    return write_pairs(tmp_path_factory.mktemp("embeddings") / "pairs", SHAPES)


@pytest.fixture(scope="module")
def source(folder):
    return open_source(str(folder), "test")


@pytest.fixture(scope="module")
def settings(folder, random_sam):
    torch.save(random_sam().state_dict(), folder.parent / "sam.pth")
    sam = Weights.of_sam(str(folder.parent / "sam.pth"))
    return PrepSettings(sam=sam, sam_settings=LOOSE | {"points_per_side": 2, "crop_n_layers": 1}, device="cpu")


@pytest.fixture(scope="module")
def kept(folder, source, settings):
    """A store with embeddings."""
    path = made(source, folder.parent / "kept.zarr", settings, KEEP)
    assert open_store(path).ready_keys == [*SHAPES]
    return path


def test_a_store_that_keeps_embeddings_is_sound_and_has_the_same_masks(folder, source, settings, kept):
    plain = made(source, folder.parent / "plain.zarr", settings)
    assert list(verify_store(kept)) == []
    with_them, without = open_store(kept), open_store(plain)
    assert list(store_differences(with_them, without)) == []
    assert with_them.header.fingerprint == without.header.fingerprint
    assert with_them.content("a") == without.content("a")
    assert [each.shape for each in with_them.embeddings("b")] == [(5, 32, 4, 4)]
    with pytest.raises(StoreError, match="keeps no embeddings"):
        without.embeddings("b")


def test_embeddings_are_the_encoders_in_half_precision(source, kept, random_sam):
    image = source.read("b").blurred
    crops = MaskGenerator(random_sam(), crop_n_layers=1, crop_n_points_downscale_factor=1).embed_crops(image)
    encoded = torch.cat([crop.embedding.features[0] for crop in crops]).half().numpy()
    assert np.array_equal(open_store(kept).embeddings("b")[0], encoded)
    assert np.array_equal(open_store(kept).embeddings("b", crops=2)[0], encoded[:2])


@pytest.mark.parametrize("layers", [0, 1])
def test_masks_are_those_of_the_generator_from_what_is_kept(
    folder, source, settings, kept, random_sam, layers, monkeypatch
):
    finer = {"points_per_side": 3, "crop_n_layers": layers, "crop_n_points_downscale_factor": 2}
    asked = replace(settings, embeddings=str(kept), sam_settings=LOOSE | finer)
    store = open_store(made(source, folder.parent / f"from-{layers}.zarr", asked))
    assert store.header.recipe["mode"]["embeddings"] == "float16"
    generator = MaskGenerator(random_sam(), **asked.sam_settings)
    monkeypatch.setattr(generator._model, "encode", None)  # it is not needed
    for key, shape in SHAPES.items():
        crops = generator.kept_crops(shape, open_store(kept).embeddings(key))
        assert store.atoms(key) == generator.generate(source.read(key).blurred, crops)[0]
    assert store.atoms("a").n_masks > 20
    assert store.ready_keys == [*SHAPES]


def test_a_run_that_is_interrupted_ends_with_the_same_bytes(folder, source, settings, kept):
    path = made(source, folder.parent / "again.zarr", settings, KEEP, blocks=1)
    assert open_store(path).ready_keys == ["a", "b"]
    prepare(source, path, settings, KEEP, workers=1)
    assert contents(path) == contents(kept)


def test_shares_and_stores_made_of_stores_leave_embeddings_behind(kept, tmp_path):
    export_zip(kept, tmp_path / "share.zip")
    export_hdf5(kept, tmp_path / "share.h5")
    subset(open_store(kept), tmp_path / "part.zarr", ["a", "b"])
    for name in ("share.zip", "share.h5", "part.zarr"):
        assert list(verify_store(tmp_path / name)) == []
        share = open_store(tmp_path / name)
        assert not share.header.embeddings
        assert share.atoms("a") == open_store(kept).atoms("a")


@pytest.mark.parametrize("damage", ["flip", "delete", "swap"])
def test_damage_to_an_embedding_is_named(kept, tmp_path, damage):
    copy = shutil.copytree(kept, tmp_path / "copy.zarr")
    shard = copy / "embeddings/0/c/1/0/0/0/0"
    if damage == "delete":
        shard.unlink()
    elif damage == "swap":
        shutil.copyfile(copy / "embeddings/0/c/0/0/0/0/0", shard)
    else:
        content = bytearray(shard.read_bytes())
        content[50] ^= 1
        shard.write_bytes(content)
    problems = list(verify_store(copy))
    assert len(problems) == 1
    assert "embeddings/0/c/1" in problems[0]
    assert open_store(copy).atoms("c").n_masks  # masks are as they were


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sam": Weights("/x", "ab" * 32)}, r"other settings \(segmenter.checkpoint: was [0-9a-f]{12}\.\.\., now abab"),
        ({"predeblur": Weights("/x", "cd" * 32)}, r"other settings \(pre-deblurring: was none, now network cdcd"),
        ({"channel_order": "bgr"}, r"made with other settings \(segmenter.channel_order: was rgb, now bgr\)"),
        ({"sam_settings": {"crop_n_layers": 2}}, "has 1 layer of crops, --crop-n-layers 2 was asked for"),
        ({"sam_settings": {"crop_n_layers": 1, "crop_overlap_ratio": 0.5}}, "its crops overlap by 0.34"),
    ],
)  # fmt: skip
def test_embeddings_of_another_encoding_are_refused(source, settings, kept, change, words):
    with pytest.raises(StoreError, match=words):
        require_embeddings(source, replace(settings, embeddings=str(kept), **change))


def test_embeddings_of_another_precision_are_refused(source, settings, kept):
    speed = replace(settings.speed, precision="bfloat16")
    with pytest.raises(StoreError, match=r"made with other settings \(mode: was exact, now tolerance\)"):
        require_embeddings(source, replace(settings, embeddings=str(kept), speed=speed))


def test_embeddings_of_other_images_are_refused(settings, kept, write_pairs, tmp_path):
    asked = replace(settings, embeddings=str(kept))
    more = open_source(str(write_pairs(tmp_path / "more", SHAPES | {"x": (40, 40)})), "test")
    with pytest.raises(StoreError, match="has no embedding of 1 image, such as x"):
        require_embeddings(more, asked)
    other = open_source(str(write_pairs(tmp_path / "other", dict.fromkeys(SHAPES, (40, 60)))), "test")
    shutil.copyfile(tmp_path / "other/blur/b.png", tmp_path / "other/blur/a.png")
    with pytest.raises(StoreError, match=r"a: .*another image"):
        require_embeddings(other, asked)


def test_an_image_that_changed_is_quarantined_by_name(settings, kept, write_pairs, tmp_path):
    folder = write_pairs(tmp_path / "pairs", SHAPES)
    shutil.copyfile(folder / "blur/a.png", folder / "blur/d.png")  # of the same size
    source = open_source(str(folder), "test")
    store = open_store(made(source, tmp_path / "x.zarr", replace(settings, embeddings=str(kept))))
    assert sorted(store.ready_keys) == ["a", "b", "c", "e"]
    assert store.error("d").startswith("d: its embedding in ")


def test_a_store_without_embeddings_is_refused_before_anything_is_written(source, settings, kept, tmp_path):
    export_zip(kept, tmp_path / "share.zip")
    asked = replace(settings, embeddings=str(tmp_path / "share.zip"))
    with pytest.raises(StoreError, match="keeps no embeddings; prepare it anew with --keep-embeddings"):
        prepare(source, tmp_path / "x.zarr", asked, workers=1)
    assert not (tmp_path / "x.zarr").exists()


def test_a_store_that_is_not_finished_is_refused(source, settings, kept, folder, tmp_path):
    shutil.copytree(kept, tmp_path / "begun.zarr")
    states = tmp_path / "begun.zarr/index/state"
    zarr.open_array(states, mode="r+")[4] = 0
    with pytest.raises(StoreError, match="1 image of it pending"):
        require_embeddings(source, replace(settings, embeddings=str(tmp_path / "begun.zarr")))


def test_a_store_goes_on_as_it_was_begun(source, settings, kept):
    with pytest.raises(StoreError, match="with embeddings is True in the store, False was asked for"):
        prepare(source, kept, settings, StoreOptions(block_size=2), workers=1)

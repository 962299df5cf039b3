from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from samdeblur.storage import AtomMap, StoreError, UnknownImage, open_store
from samdeblur.storage.sharing.info import describe
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.combine import append, merge, subset
from samdeblur.storage.writing.commits import Committer
from samdeblur.storage.writing.compare import best_iou, same_masks, store_differences


@pytest.fixture(scope="module")
def partial(store_case, tmp_path_factory):
    """(blocks) -> the path of a store of the whole data set with these blocks committed."""

    def make(*blocks, **changes):
        header = dataclasses.replace(store_case.header, **changes)
        path = tmp_path_factory.mktemp("partial") / "part.zarr"
        case = dataclasses.replace(store_case, path=path, header=header)
        case.create()
        committer = Committer(case.path)
        committer.commit([case.stage(committer, block) for block in blocks])
        committer.close()
        return open_store(case.path)

    return make


def test_partial_stores_merge_into_the_whole_one(partial, whole_store, tmp_path):
    merged = merge([partial(0, 3), partial(1, 2), partial(2, 4)], tmp_path / "merged.zarr")
    assert list(verify_store(tmp_path / "merged.zarr")) == []
    assert merged.keys == sorted(whole_store.keys)
    assert list(store_differences(open_store(whole_store.path), merged)) == ["the images are in another order"]


def test_what_is_pending_everywhere_stays_so(partial, tmp_path):
    merged = merge([partial(0), partial(1)], tmp_path / "merged.zarr")
    assert set(merged.ready_keys) == set(partial(0, 1).ready_keys)
    assert list(verify_store(tmp_path / "merged.zarr")) == []


def test_a_merge_goes_on_where_it_was_stopped(partial, tmp_path):
    parts = [partial(0, 1), partial(2, 3, 4)]

    def stop(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(parts, tmp_path / "merged.zarr", stop)
    merged = merge(parts, tmp_path / "merged.zarr")
    assert list(store_differences(merged, merge(parts, tmp_path / "again.zarr"))) == []
    assert (tmp_path / "merged.zarr/atoms/c/0/0/0").read_bytes() == (tmp_path / "again.zarr/atoms/c/0/0/0").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {"mode": "fast"}}, "another recipe"),
        ({"dataset": "reds"}, "dataset is reds"),
        ({"split": "test"}, "split is test"),
        ({"images": False}, "images is False"),
    ],
    ids=["recipe", "dataset", "split", "images"],
)
def test_stores_that_do_not_belong_together_are_refused(partial, tmp_path, changes, words):
    with pytest.raises(StoreError, match=words):
        merge([partial(0), partial(1, **changes)], tmp_path / "merged.zarr")
    assert not (tmp_path / "merged.zarr").exists()


def test_an_image_with_other_masks_in_another_store_is_refused(partial, store_case, tmp_path):
    contents = list(store_case.contents)
    contents[1] = dataclasses.replace(contents[1], atoms=AtomMap.empty(contents[1].atoms.shape), records={})
    other = dataclasses.replace(store_case, path=tmp_path / "other.zarr", contents=contents)
    other.create()
    committer = Committer(other.path)
    committer.commit([other.stage(committer, 0)])
    committer.close()
    with pytest.raises(StoreError, match="000048 has other masks"):
        merge([partial(0), open_store(other.path)], tmp_path / "merged.zarr")
    (line,) = store_differences(partial(0), open_store(other.path))
    assert "000048: 5 -> 0 masks, 0 of them equal" in line


def test_another_store_in_the_way_is_left_alone(partial, whole_store, tmp_path):
    store = open_store(whole_store.path)
    made = subset(store, tmp_path / "there.zarr", store.keys[:2])
    with pytest.raises(StoreError, match="is there already"):
        subset(store, tmp_path / "there.zarr", store.keys[2:4])
    assert open_store(tmp_path / "there.zarr").keys == made.keys


def test_a_subset_keeps_images_and_order(whole_store, tmp_path):
    store = open_store(whole_store.path)
    keys = ["scene/small", "nuit/été_夜", "scene/unreadable"]
    part = subset(store, tmp_path / "part.zarr", keys)
    assert part.keys == ["nuit/été_夜", "scene/unreadable", "scene/small"]
    assert part.header.extent == (256, 512)  # no larger than its images ask for
    assert list(verify_store(tmp_path / "part.zarr")) == []
    for key in part.ready_keys:
        assert part.atoms(key) == store.atoms(key)
        assert np.array_equal(part.image("sharp", key), store.image("sharp", key))
    assert part.error("scene/unreadable") == store.error("scene/unreadable")
    with pytest.raises(UnknownImage, match="gone"):
        subset(store, tmp_path / "other.zarr", ["gone"])


def test_new_images_are_appended(whole_store, tmp_path):
    store = open_store(whole_store.path)
    first = subset(store, tmp_path / "first.zarr", store.keys[3:])
    more = subset(store, tmp_path / "more.zarr", store.keys[:3])
    both = append(first, more, tmp_path / "both.zarr")
    assert both.keys == store.keys[3:] + store.keys[:3]
    assert list(store_differences(store, both)) == ["the images are in another order"]
    with pytest.raises(StoreError, match="already"):
        append(store, more, tmp_path / "no.zarr")


def test_differences_are_named(whole_store, partial):
    whole, part = open_store(whole_store.path), partial(0, 1, 2, 4, dataset="reds", recipe={"mode": "exact"})
    lines = list(store_differences(whole, part))
    assert "dataset: gopro -> reds" in lines
    assert any(line.startswith("recipe: segmenter") for line in lines)
    assert "scene/without_masks: done -> pending" in lines
    assert "scene/too_many: quarantined -> pending" in lines
    assert list(store_differences(whole, whole)) == []


def test_equal_masks_are_found_as_a_dense_comparison_finds_them(random_masks):
    rng = np.random.default_rng(3)
    first = random_masks(rng, 9, 30, 40)
    second = np.concatenate([first[[4, 1, 4]], random_masks(rng, 5, 30, 40)])
    expected = [
        (i, j)
        for i, mine in enumerate(first)
        for j, theirs in enumerate(second)
        if mine.any() and np.array_equal(mine, theirs)
    ]
    found = same_masks(AtomMap.from_masks(first), AtomMap.from_masks(second))
    assert sorted(map(tuple, found.tolist())) == expected


def test_a_store_is_described(finished_store):
    found = describe(open_store(finished_store.path))
    json.dumps(found)
    assert found["images"] == {"pending": 1, "done": 6, "quarantined": 2}
    assert sum(found["masks_per_image"].values()) == 6
    assert found["masks_per_image"]["0"] == 1
    assert found["per_image"]["masks"]["most"] == 12
    files = [file.stat().st_size for file in finished_store.path.rglob("*") if file.is_file()]
    assert found["bytes"]["all"] == pytest.approx(sum(files), abs=400)  # zarr.json of the group images
    assert found["sizes"]["280x300"] == 1


def test_the_best_overlap_is_that_of_a_dense_comparison(random_masks):
    rng = np.random.default_rng(4)
    first, second = random_masks(rng, 8, 30, 40), random_masks(rng, 6, 30, 40)
    ious = [[(a & b).sum() / max(1, (a | b).sum()) for b in second] for a in first]
    found = best_iou(AtomMap.from_masks(first), AtomMap.from_masks(second))
    assert np.allclose(found, np.max(ious, axis=1))

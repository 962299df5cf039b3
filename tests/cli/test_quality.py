"""samdeblur-prep quality: stores by themselves and beside a reference."""

from __future__ import annotations

import json


def prepare(samdeblur, source, path, segmenter):
    made = samdeblur("prep", "run", source, path, "--split", "test", "--segmenter", segmenter, "--workers", 1)
    assert made.code == 0, made.err
    return path


def test_stores_beside_a_reference(samdeblur, tmp_path):
    true, worse = (prepare(samdeblur, "worlds:3:96", tmp_path / name, name) for name in ("true-masks", "superpixels"))
    done = samdeblur("prep", "quality", worse, true, "--reference", true, "--out", tmp_path / "q.json", "--most", 2)
    assert done.code == 0, done.err
    assert done.out.count("mean of 2 images") == 2
    shares = [int(line.split("%")[0]) for line in done.out.splitlines() if "is to be expected" in line]
    assert 0 <= shares[0] < 30
    assert shares[1] == 100
    figures = json.loads((tmp_path / "q.json").read_text())
    of_worse, of_true = (list(images.values()) for images in figures.values())
    assert [one["iou"] for one in of_true] == [1, 1]
    assert max(one["iou"] for one in of_worse) < 0.9
    assert min(one["on_edges"] for one in of_true) > max(one["on_edges"] for one in of_worse)


def test_without_a_reference_nothing_is_expected(samdeblur, store):
    done = samdeblur("prep", "quality", store)
    assert done.code == 0, done.err
    assert "to be expected" not in done.out


def test_stores_of_other_images_are_refused(samdeblur, store, tmp_path):
    other = prepare(samdeblur, "worlds:2:96", tmp_path / "other", "superpixels")
    done = samdeblur("prep", "quality", store, "--reference", other)
    assert done.code == 2
    assert "none of its images" in done.err

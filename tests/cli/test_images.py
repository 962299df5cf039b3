"""--images: a dataset's own images, masks from a share without them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch

from samdeblur.cli.support.images import with_images
from samdeblur.models import NAFNet
from samdeblur.pipeline import SourceError
from samdeblur.storage import open_store


@pytest.fixture
def share(samdeblur, store, tmp_path):
    """The masks of the prepared pairs, alone."""
    assert samdeblur("prep", "export", store, tmp_path / "masks.zarr.zip").code == 0
    return tmp_path / "masks.zarr.zip"


@pytest.fixture
def evaluate(samdeblur, tmp_path):
    """evaluate(name, *stores and options) -> Result, and the folder of the results of a small network."""
    torch.manual_seed(0)
    torch.save(NAFNet(4, [1], 1, [1]).state_dict(), tmp_path / "nafnet.pth")

    def call(name, *arguments):
        folder = tmp_path / name
        return samdeblur("eval", "run", tmp_path / "nafnet.pth", *arguments, "--out", folder), folder

    return call


def files(folder):
    """What an evaluation wrote, without what differs in time."""
    found = {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    found = {name: content for name, content in found.items() if name.parts[0] != "journal"}
    document = json.loads(found.pop(Path("results.json")))
    for scored in document["sets"]:
        scored.pop("timings")
    return found | {Path("results.json"): document}


def sets(folder):
    return json.loads((folder / "results.json").read_text())["sets"]


def test_masks_of_a_share_are_scored_with_images_of_the_folder(evaluate, store, share, pairs):
    own, expected = evaluate("own", store)
    joined, results = evaluate("joined", share, "--images", pairs)
    assert (own.code, joined.code) == (0, 0), joined.err
    assert joined.err == ""
    assert {"results.json", "results.csv", "report.html"} < {file.name for file in files(results)}
    assert files(results) == files(expected)  # the report and its images too


def test_what_the_folder_lacks_is_said_and_left_out(evaluate, share, pairs):
    (pairs / "sharp/002.png").unlink()
    for folder in ("blur", "sharp"):
        (pairs / folder / "004.png").unlink()
    done, results = evaluate("less", share, "--images", pairs)
    assert done.code == 3, done.err
    said = [line for line in done.err.splitlines() if line.startswith(f"{pairs}: ")]
    assert len(said) == 1
    assert f"2 of the 5 images ready in {share} are not there, such as 002" in said[0]
    (scored,) = sets(results)
    assert [image["key"] for image in scored["images"]] == ["000", "001", "003"]
    assert scored["unready"] == 2
    assert scored["left_out"] == {"002": "its file is not there", "004": "its file is not there"}


def test_images_of_the_folder_go_before_those_of_the_store(evaluate, store, pairs):
    for file in (pairs / "sharp").iterdir():
        cv2.imwrite(str(file), cv2.imread(str(file)) ^ 64)
    (own, results), (joined, other) = evaluate("own", store), evaluate("joined", store, "--images", pairs)
    assert (own.code, joined.code) == (0, 0)
    assert sets(results)[0]["summary"]["psnr_blurred"] > sets(other)[0]["summary"]["psnr_blurred"] + 3


def test_each_store_has_a_folder_of_its_own(evaluate, store, share, pairs, tmp_path):
    done, results = evaluate("two", share, store, "--images", pairs, "--images", pairs, "--report-images", 0)
    assert done.code == 0, done.err
    first, second = sets(results)
    assert (first["dataset"], second["dataset"]) == ("pairs (masks.zarr.zip)", "pairs (prepared.zarr)")
    for one in (first, second):
        del one["timings"], one["dataset"]
    assert first == second
    for given, words in [
        ((share, store, "--images", pairs), "one folder for each store, in the same order; 1 given for 2"),
        ((share, "--images", pairs, "--images", pairs), "2 given for 1"),
        ((store, "--images-layout", "pairs"), "--images-layout is for --images"),
        ((share,), "--images"),
        ((share, "--images", tmp_path / "gone"), "gone: no such folder"),
        ((share, "--images", pairs, "--images-layout", "gopro"), "layout"),
        ((share, "--images", "sample"), "sample has no image of"),
    ]:
        refused, folder = evaluate("refused", *given)
        assert (refused.code, words in refused.error) == (2, True), refused.err
        assert not folder.exists()


def test_another_image_than_that_of_the_masks_is_left_out_and_where_all_are_nothing_is_scored(evaluate, share, pairs):
    image = cv2.imread(str(pairs / "blur/001.png"))
    cv2.imwrite(str(pairs / "blur/001.png"), image ^ 1)
    done, results = evaluate("done", share, "--images", pairs)
    assert done.code == 3
    assert f"001 is left out: {pairs}: 001: its masks are of another image" in done.err
    assert [image["key"] for image in sets(results)[0]["images"]] == ["000", "002", "003", "004"]
    for file in (pairs / "blur").iterdir():
        cv2.imwrite(str(file), cv2.imread(str(file)) ^ 2)
    failed, folder = evaluate("failed", share, "--images", pairs)
    assert failed.code == 1
    assert "none of 5 images can be used; 000: " in failed.err
    assert not (folder / "results.json").exists()


def test_the_split_is_that_of_the_store(store, pairs):
    pairs.rename(pairs.with_name("test"))
    assert with_images(open_store(store), str(pairs.parent)).ready_keys == ["000", "001", "002", "003", "004"]
    pairs.with_name("test").rename(pairs.with_name("train"))
    with pytest.raises(SourceError, match="no split 'test' there"):
        with_images(open_store(store), str(pairs.parent))

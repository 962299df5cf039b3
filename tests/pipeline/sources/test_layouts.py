"""Miniature trees of the datasets, written by hand: keys, pairs and messages.

A new layout needs an entry in TREES: `every_layout` runs on it. The last entry is the recipe of docs/contributing.md.
"""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from pages import blocks
from places import ROOT

from samdeblur.pipeline import BadImage, SourceError, open_source
from samdeblur.pipeline.sources.layouts import LAYOUTS

INNER = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"


@dataclass(frozen=True)
class Tree:
    """A dataset in miniature.

    Attributes:
        digest: "pixels", or "file" where blurred images are lossy files.
        expected: that of the layout.
        files: key -> (blurred file, sharp file).
        published: pairs that the split has in full.
    """

    dataset: str
    digest: str
    split: str
    expected: str
    files: dict[str, tuple[str, str]]
    published: int | None = None


def files(blurred: str, sharp: str, *keys: str) -> dict[str, tuple[str, str]]:
    """key -> (blurred file, sharp file); {0} in the names is the key, {1} and {2} are its folder and its last part."""
    return {key: (blurred.format(key, *key.split("/")), sharp.format(key, *key.split("/"))) for key in keys}


TREES = {
    "gopro": Tree(
        "GoPro",
        "pixels",
        "train",
        "folders {split}/GOPR.../blur and sharp",
        files(
            "train/{1}/blur/{2}.png",
            "train/{1}/sharp/{2}.png",
            "GOPR0372_07_00/000047",
            "GOPR0372_07_00/000048",
            "GOPR0884_11_00/000047",
        ),
        2103,
    ),
    "realblur-j": Tree(
        "RealBlur-J",
        "pixels",
        "train",
        "RealBlur_J_{split}_list.txt beside the folder RealBlur-J_ECC_...",
        {
            "scene001/blur_1": (f"{INNER}/scene001/blur/blur_1.png", f"{INNER}/scene001/gt/gt_1.png"),
            "scene001/blur_12": (f"{INNER}/scene001/blur/blur_12.png", f"{INNER}/scene001/gt/gt_12.png"),
            "scene230/blur_1": (f"{INNER}/scene230/blur/blur_1.png", f"{INNER}/scene230/gt/gt_1.png"),
        },
        3758,
    ),
    "reds": Tree(
        "REDS",
        "pixels",
        "val",
        "folders {split}_sharp and {split}_blur, here or in {split}/",
        files("val/val_blur/{0}.png", "val/val_sharp/{0}.png", "000/00000000", "000/00000099", "029/00000000"),
        3000,
    ),
    "reds-jpeg": Tree(
        "REDS-JPEG",
        "file",
        "val",
        "folders {split}_sharp and {split}_blur_jpeg, here or in {split}/",
        files("val/val_blur_jpeg/{0}.jpg", "val/val_sharp/{0}.png", "000/00000000", "000/00000099", "029/00000000"),
        3000,
    ),
    "reloblur": Tree(
        "ReLoBlur",
        "pixels",
        "test",
        "files {split}/s01/00/00_blur.png and 00_sharp.png",
        files("test/{0}_blur.png", "test/{0}_sharp.png", "s01/00/00", "s01/00/01", "scene2/07/00"),
        395,
    ),
    "pairs": Tree(
        "data",
        "pixels",
        "test",
        "folders blur|blurred|input|lq and sharp|target|gt with the same names, here or in {split}/",
        files("test/input/{0}.png", "test/target/{0}.png", "GOPR0384_11_00-000001", "GOPR0384_11_00-000002", "night/0"),
    ),
    "scenes": Tree(
        "Scenes",
        "pixels",
        "test",
        "folders {split}/SCENE with input.png and truth.png",
        files("test/{0}/input.png", "test/{0}/truth.png", "bridge", "market", "station"),
    ),
}
every_layout = pytest.mark.parametrize("layout", TREES)


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    """The layout that docs/contributing.md tells people to write."""
    monkeypatch.setitem(LAYOUTS, "scenes", None)  # which takes the recipe's away afterwards
    _, text = next(blocks(ROOT / "docs/contributing.md", "python"))
    exec(compile(text, "contributing.md", "exec"), {})


@pytest.fixture
def tree(tmp_path, save, random_image):
    """(layout, change=lambda name: name) -> root, with the files of TREES under changed names."""

    def write(layout, change=lambda name: name):
        root = tmp_path / "data"
        for number, names in enumerate(TREES[layout].files.values()):
            for side, name in enumerate(names):
                save(root / change(name), random_image(2 * number + side, 9 + number, 8))
        if layout == "realblur-j":
            write_list(root / "RealBlur_J_train_list.txt")
        return root

    return write


def write_list(file, prefix=f"{INNER}/"):
    names = [f"{prefix}scene{s}/{{}}/{{}}_{n}.png" for s, n in (("001", 12), ("001", 1), ("230", 1))]
    lines = [f"{name.format('gt', 'gt')} {name.format('blur', 'blur')} " for name in names]
    file.write_text("\n".join(lines))


def assert_whole(source, layout, random_image):
    """Every pair of TREES, pixels and all."""
    assert list(source.keys) == sorted(TREES[layout].files)
    for number, key in enumerate(TREES[layout].files):
        pair = source.read(key)
        assert source.shape(key) == pair.sharp.shape[:2] == (9 + number, 8)
        for side, pixels, name in zip((0, 1), (pair.blurred, pair.sharp), TREES[layout].files[key], strict=True):
            difference = np.abs(pixels.astype(int) - random_image(2 * number + side, 9 + number, 8)).mean()
            assert difference < 30 if name.endswith(".jpg") else difference == 0


def open_tree(root, layout, named="auto", **arguments):
    return open_source(str(root), TREES[layout].split, named, **arguments)


def refusal(root, split, layout="auto"):
    with pytest.raises(SourceError) as caught:
        open_source(str(root), split, layout)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(root))
    return message


def guessed(layout):
    return f" (taken for {layout}; --layout names another, see docs/datasets.md)"


@every_layout
@pytest.mark.parametrize("named", [True, False], ids=["by name", "auto"])
def test_a_split_is_listed_under_its_keys_and_pairs_belong_together(tree, random_image, layout, named):
    source = open_tree(tree(layout), layout, layout if named else "auto")
    assert (source.dataset, source.digest, source.split) == (
        TREES[layout].dataset,
        TREES[layout].digest,
        TREES[layout].split,
    )
    assert_whole(source, layout, random_image)


@every_layout
def test_the_case_of_suffixes_does_not_matter(tree, random_image, layout):
    def upper(name):
        stem, suffix = os.path.splitext(name)
        return stem + suffix.upper()

    root = tree(layout, upper)
    assert_whole(open_tree(root, layout), layout, random_image)


@every_layout
def test_a_tree_of_links_is_read_like_the_tree(tree, tmp_path, random_image, layout):
    root = tree(layout)
    linked = tmp_path / "linked"
    for number, file in enumerate(sorted(file for file in root.rglob("*") if file.is_file())):
        name = linked / file.relative_to(root)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(file if number % 2 else os.path.relpath(file, name.parent))
    assert_whole(open_tree(linked, layout), layout, random_image)

    of_folders = tmp_path / "of folders"
    of_folders.mkdir()
    for entry in root.iterdir():
        (of_folders / entry.name).symlink_to(entry)
    assert_whole(open_tree(of_folders, layout), layout, random_image)


@every_layout
def test_loops_of_folder_links_are_not_followed(tree, random_image, layout):
    root = tree(layout)
    for folder in [folder for folder in root.rglob("*") if folder.is_dir()]:
        (folder / "itself").symlink_to(".")
        (folder / "above").symlink_to("..")
        (folder / "root").symlink_to(root)
        (folder / "nothing").symlink_to("nothing")
    assert_whole(open_tree(root, layout), layout, random_image)


@every_layout
def test_missing_files_are_named_and_refused_or_left_out_with_a_note(tree, random_image, layout):
    root = tree(layout)
    (first, last) = (sorted(TREES[layout].files)[position] for position in (0, -1))
    (root / TREES[layout].files[first][0]).unlink()
    (root / TREES[layout].files[last][1]).unlink()
    message = refusal(root, TREES[layout].split)
    assert f"2 images without a counterpart: {first} (no blurred), {last} (no sharp);" in message
    assert "--skip-unpaired" in message

    source = open_tree(root, layout, skip_unpaired=True)
    (kept,) = TREES[layout].files.keys() - {first, last}
    assert source.keys == [kept]
    number = list(TREES[layout].files).index(kept)
    assert np.array_equal(source.read(kept).sharp, random_image(2 * number + 1, 9 + number, 8))
    assert source.notes[0] == (
        f"{TREES[layout].dataset} {TREES[layout].split}: 2 images left out without a counterpart: "
        f"{first} (no blurred), {last} (no sharp)"
    )


@every_layout
def test_a_truncated_file_spoils_its_own_pair_alone(tree, random_image, layout):
    root = tree(layout)
    spoilt, *sound = TREES[layout].files
    file = root / TREES[layout].files[spoilt][0]
    file.write_bytes(file.read_bytes()[:20])
    source = open_tree(root, layout)
    with pytest.raises(BadImage, match=file.name):
        source.read(spoilt)
    assert source.shape(spoilt) == (9, 8)  # that of the sharp one
    for number, key in enumerate(sound, 1):
        assert np.array_equal(source.read(key).sharp, random_image(2 * number + 1, 9 + number, 8))


@pytest.mark.parametrize("layout", [name for name, tree in TREES.items() if tree.published])
def test_another_number_of_pairs_than_was_published_is_noted(tree, layout):
    dataset, split, published = TREES[layout].dataset, TREES[layout].split, TREES[layout].published
    assert open_tree(tree(layout), layout).notes == (
        f"{dataset} {split}: 3 pairs found, the published split has {published:,}",
    )


def test_the_published_number_of_pairs_needs_no_note(tmp_path):
    for number in range(395):
        take = tmp_path / f"test/s{number // 100:02d}/{number % 100:02d}"
        take.mkdir(parents=True)
        (take / "00_blur.png").touch()
        (take / "00_sharp.png").touch()
    source = open_source(str(tmp_path), "test")
    assert (len(source.keys), source.notes) == (395, ())


def test_a_subset_leaves_the_notes_behind(tree):
    source = open_tree(tree("gopro"), "gopro")
    received = pickle.loads(pickle.dumps(source.subset(source.keys[:1])))
    assert (received.keys, received.notes, received.root) == (source.keys[:1], (), source.root)


@every_layout
def test_paths_are_absolute_so_that_any_working_directory_will_do(tree, tmp_path, random_image, monkeypatch, layout):
    root = tree(layout)
    monkeypatch.chdir(root.parent)
    source = open_tree("data", layout)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert source.root == root
    assert_whole(source, layout, random_image)


@pytest.mark.parametrize("layout", ["gopro", "realblur-j", "reds", "reds-jpeg", "reloblur"])
@pytest.mark.parametrize("named", [True, False], ids=["by name", "auto"])
def test_a_split_that_is_not_there_is_refused_naming_those_that_are(tree, layout, named):
    root, there = tree(layout), TREES[layout].split
    message = refusal(root, "tests", layout if named else "auto")
    assert "no split 'tests' there" in message
    there = "test or --split train" if layout == "realblur-j" else there
    assert message.endswith(f"; name one that is, --split {there}" + ("" if named else guessed(layout)))


@every_layout
def test_another_tree_than_the_named_layout_is_refused_with_what_was_expected(tmp_path, layout):
    (tmp_path / "images").mkdir()
    expected = TREES[layout].expected.format(split="val")
    assert f"no {expected};" in refusal(tmp_path, "val", layout)
    assert f"{layout}: {expected}" in refusal(tmp_path, "val")


def test_every_layout_has_a_tree():
    assert TREES.keys() == LAYOUTS.keys()


# The root: the folder of the split itself, or one further up.


@pytest.mark.parametrize("layout", ["gopro", "reds", "reloblur"])
def test_the_folder_of_the_split_will_do(tree, random_image, layout):
    assert_whole(open_tree(tree(layout) / TREES[layout].split, layout), layout, random_image)


@pytest.mark.parametrize("layout", ["reds", "reds-jpeg"])
def test_the_folders_of_reds_may_lie_in_the_root(tree, random_image, layout):
    root = tree(layout, lambda name: name.removeprefix("val/"))
    assert_whole(open_tree(root, layout), layout, random_image)
    assert "name one that is, --split val" in refusal(root, "train")


@pytest.mark.parametrize("place", [".", INNER, "..", "../data"])
@pytest.mark.parametrize("lists", [".", INNER])
def test_the_root_of_realblur_may_be_one_off(tree, random_image, place, lists):
    root = tree("realblur-j")
    if lists != ".":
        shutil.move(root / "RealBlur_J_train_list.txt", root / lists)
    if place == "..":
        (root.parent / "RealBlur-J").mkdir()
        root = root.rename(root.parent / "RealBlur-J/set") / ".."
    assert_whole(open_tree(root if place == ".." else root / place, "realblur-j"), "realblur-j", random_image)


# The lists of RealBlur-J.


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n  \n",
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("/", "\\"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace(f"{INNER}/", ""),
        lambda text: text.replace(f"{INNER}/", "./"),
        lambda text: text.replace(f"{INNER}/", f"/home/user/RealBlur/{INNER}/"),
        lambda text: text.replace(" \n", "\n").rstrip(),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace(".png", ".PNG"),
        lambda text: text + "\n" + text,
    ],
    ids=["CRLF", "blank end", "blank lines", "backslashes", "BOM", "no prefix", "dot", "absolute", "no blank", "tabs",
         "upper case", "twice"],
)  # fmt: skip
def test_lists_that_went_through_other_hands_are_read(tree, random_image, change):
    root = tree("realblur-j")
    file = root / "RealBlur_J_train_list.txt"
    file.write_bytes(change(file.read_text()).encode())
    assert_whole(open_tree(root, "realblur-j"), "realblur-j", random_image)


@pytest.mark.parametrize(
    "line",
    [
        f"{INNER}/scene001/gt/gt_1.png",
        f"{INNER}/scene001/gt/gt_1.png {INNER}/scene001/blur/blur_12.png",
        f"{INNER}/scene001/gt/gt_1.png {INNER}/scene230/blur/blur_1.png",
        f"{INNER}/scene001/gt/gt_1.png {INNER}/scene001/gt/gt_1.png",
        f"{INNER}/scene001/gt/gt_1.png {INNER}/scene001/blur/blur_1.png 0",
        f"{INNER}/scene001/gt/gt_1.pn",
        "<!DOCTYPE html>",
        "x" * 4000,
    ],
    ids=["one file", "other number", "other scene", "no blurred", "three", "cut off", "web page", "long"],
)
def test_a_line_that_names_no_pair_is_refused_with_its_number(tree, line):
    root = tree("realblur-j")
    file = root / "RealBlur_J_train_list.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, line]))
    message = refusal(root, "train")
    assert f"{file}: line 4 names no pair" in message
    assert repr(line)[1:20] in message
    assert len(message) < 600


def test_lines_whose_files_are_missing_are_named(tree):
    root = tree("realblur-j")
    file = root / "RealBlur_J_train_list.txt"
    file.write_text(file.read_text() + f"\n{INNER}/scene999/gt/gt_7.png {INNER}/scene999/blur/blur_7.png ")
    assert ": 1 image without a counterpart: scene999/blur_7 (no blurred, no sharp);" in refusal(root, "train")
    assert len(open_tree(root, "realblur-j", skip_unpaired=True).keys) == 3


def test_images_that_no_list_names_are_of_another_split(tree, save, random_image):
    root = tree("realblur-j")
    save(root / INNER / "scene002/gt/gt_1.png", random_image(90, 9, 8))
    save(root / INNER / "scene002/blur/blur_1.png", random_image(91, 9, 8))
    (root / "RealBlur_J_test_list.txt").write_text("scene002/gt/gt_1.png scene002/blur/blur_1.png")
    assert_whole(open_tree(root, "realblur-j"), "realblur-j", random_image)
    test = open_source(str(root), "test")
    assert test.keys == ["scene002/blur_1"]
    assert np.array_equal(test.read("scene002/blur_1").sharp, random_image(90, 9, 8))


def test_a_missing_list_or_folder_of_realblur_is_named(tree):
    root = tree("realblur-j")
    assert f"RealBlur_J_test_list.txt is missing, which says what the split is; put it beside {INNER}" in refusal(
        root, "test"
    )
    shutil.rmtree(root / INNER)
    assert "no folder RealBlur-J_ECC_... of images there; put it beside the lists" in refusal(root, "train")


@pytest.mark.parametrize(
    ("blurred", "sharp"),
    [
        ("scene_001/blur_001.png", "scene_001/gt/001.png"),
        ("scene001/blur/1.png", "scene001/gt/1.png"),
        ("scene001/input/blur_1.png", "scene001/gt/gt_1.png"),
        ("train/scene1/blurred/1.png", "train/scene1/sharp/1.png"),
    ],
)
def test_scenes_of_another_dataset_are_not_taken_for_one_of_these(tmp_path, save, random_image, blurred, sharp):
    for name in (blurred, sharp):
        save(tmp_path / name, random_image(92, 9, 8))
    message = refusal(tmp_path, "train")
    assert "no known layout" in message or message.endswith(guessed("pairs"))


def test_scenes_of_realblur_without_their_list_are_refused_as_what_they_were_taken_for(tree):
    root = tree("realblur-j", lambda name: name.replace(INNER, "images"))
    (root / "RealBlur_J_train_list.txt").unlink()
    assert refusal(root, "train").endswith("put it beside images" + guessed("realblur-j"))
    assert refusal(root, "train", "realblur-j").endswith("put it beside images")


# REDS, and what is found where several layouts lie together.


def test_png_frames_of_reds_go_before_the_jpeg_ones(tree, random_image):
    tree("reds-jpeg", lambda name: name.replace("sharp", "unused"))
    root = tree("reds")
    assert_whole(open_tree(root, "reds"), "reds", random_image)
    named = open_tree(root, "reds-jpeg", "reds-jpeg")
    assert (named.dataset, named.digest) == ("REDS-JPEG", "file")
    assert {blurred.suffix for blurred, _ in named.files.values()} == {".jpg"}


@pytest.mark.parametrize("gone", ["sharp", "blur", "blur_jpeg"])
def test_a_part_of_reds_that_was_not_unpacked_is_named(tree, gone):
    root = tree("reds-jpeg" if gone == "blur_jpeg" else "reds")
    shutil.rmtree(root / f"val/val_{gone}")
    message = refusal(root, "val", "reds-jpeg" if gone == "blur_jpeg" else "auto")
    assert f"no folder val_{gone} there; unpack that part of REDS" in message


def test_each_split_is_read_in_its_own_layout(tree, random_image):
    tree("gopro")
    root = tree("pairs")
    assert open_source(str(root), "train").dataset == "GoPro"
    assert open_source(str(root), "test").dataset == "data"
    assert_whole(open_tree(root, "gopro"), "gopro", random_image)
    assert_whole(open_tree(root, "pairs"), "pairs", random_image)
    assert "no split 'val' there" in refusal(root, "val")


def test_other_files_of_reloblur_are_left_alone(tree, save, random_image):
    root = tree("reloblur")
    save(root / "test/s01/00/00_mask.png", random_image(0, 9, 8))
    save(root / "test/s01/00/00.png", random_image(0, 9, 8))
    save(root / "masks/test/s01/00/00.png", random_image(0, 9, 8))
    assert_whole(open_tree(root, "reloblur"), "reloblur", random_image)
    assert "name one that is, --split test" in refusal(root, "masks", "reloblur")


# Two folders with the same names.


@pytest.mark.parametrize("change", [str.upper, str.title])
def test_the_case_of_the_two_folders_does_not_matter(tree, random_image, change):
    root = tree("pairs", lambda name: name.replace("input", change("input")).replace("target", change("gt")))
    assert_whole(open_tree(root, "pairs"), "pairs", random_image)


def test_a_plain_root_of_two_folders_takes_any_split(tree):
    root = tree("pairs", lambda name: name.removeprefix("test/"))
    for split in ("train", "test", "night"):
        source = open_source(str(root), split)
        assert (source.split, len(source.keys)) == (split, 3)


@pytest.mark.parametrize("layout", ["auto", "pairs"])
@pytest.mark.parametrize("beside", ["", "train/", "night/"])
def test_a_misspelt_split_is_refused_where_there_are_folders_of_splits(tree, layout, beside):
    root = tree("pairs")
    if beside:
        tree("pairs", lambda name: name.replace("test/", beside))
    message = refusal(root, "tets", layout)
    assert "no split 'tets' there" in message
    there = sorted({"test", beside.rstrip("/")} - {""})
    named = " or ".join(f"--split {name}" for name in there)
    assert message.endswith(f"; name one that is, {named}" + ("" if layout == "pairs" else guessed("pairs")))
    tree("pairs", lambda name: name.removeprefix("test/"))  # in the root too: it might be meant, or not
    assert "no split 'tets' there" in refusal(root, "tets", layout)


def test_folders_of_other_names_do_not_keep_a_root_from_serving_any_split(tree):
    root = tree("pairs", lambda name: name.removeprefix("test/"))
    tree("pairs", lambda name: name.replace("test/", "night/"))
    (root / "test/input").mkdir(parents=True)  # without a counterpart no split
    assert open_source(str(root), "test").files.keys() == open_source(str(root), "night").files.keys()
    assert all("night" in str(blurred) for blurred, _ in open_source(str(root), "night").files.values())

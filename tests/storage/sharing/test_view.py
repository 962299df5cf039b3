from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import PROGRAM, Browser
from PIL import Image

from samdeblur.storage import AtomMap, StoreDamaged, StoreError, UnknownImage, open_store
from samdeblur.storage.format.layout import RECORD_COLUMNS, Header
from samdeblur.storage.sharing.view import contact_keys, write_view
from samdeblur.storage.writing.commits import Committer, ImageContent

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The elements of a page, its text, and its cards: caption, reason, image and labels, JSON."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements, self.text, self.cards, self._open = [], {}, [], []
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._open.append((tag, attributes.get("class"), attributes.get("type")))
        if tag == "figure":
            self.cards.append({"caption": "", "reason": "", "json": "", "image": None, "labels": None})
        if tag == "img":
            self.cards[-1]["image"] = attributes["src"]
        if "data-labels" in attributes:
            self.cards[-1]["labels"] = attributes["data-labels"]
        if tag in ("img", "meta"):
            self._open.pop()

    def handle_endtag(self, tag):
        while self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, kind, media = self._open[-1] if self._open else ("", None, None)
        self.text[tag] = self.text.get(tag, "") + data
        if tag == "figcaption":
            self.cards[-1]["caption"] += data.strip()
        elif kind == "reason":
            self.cards[-1]["reason"] += data
        elif media == "application/json":
            self.cards[-1]["json"] += data


@pytest.fixture
def view(tmp_path):
    """view(store, keys, **options) -> Page."""

    def write(store, keys, **options):
        write_view(store, tmp_path / "view.html", keys, **options)
        assert [file.name for file in tmp_path.glob("view.html*")] == ["view.html"]
        return Page(tmp_path / "view.html")

    return write


@pytest.fixture
def make_store(store_case, tmp_path):
    """make_store({key: ImageContent, or the reason of a quarantined image}, **header) -> a store on disk, opened."""

    def make(images, /, **changes):
        reasons = {key: content for key, content in images.items() if isinstance(content, str)}
        contents = [None if key in reasons else content for key, content in images.items()]
        shapes = [content.atoms.shape if content else (9, 9) for content in contents]
        n, key_bytes = len(images), max(len(key.encode()) for key in images)
        header = Header("toy", "train", {}, "pixels", n, (256, 256), key_bytes, block_size=n, images=False)
        case = replace(
            store_case,
            path=tmp_path / "made.zarr",
            header=replace(header, **changes),
            keys=list(images),
            shapes=np.array(shapes, np.int32),
            contents=contents,
            quarantined=reasons,
        )
        case.create()
        committer = Committer(case.path)
        committer.commit([case.stage(committer, 0)])
        committer.close()
        return open_store(case.path)

    return make


@pytest.fixture
def store(finished_store):
    return open_store(finished_store.path)


def masks_alone(content):
    return ImageContent(content.atoms, content.records)


def image_of(card):
    return np.array(Image.open(decoded(card["image"], "jpeg")).convert("RGB")).astype(int)


def labels_of(card):
    image = Image.open(decoded(card["labels"], "png"))
    assert image.mode == "RGB"  # opaque: a canvas gives back such pixels as they are
    assert not image.info.keys() & {"gamma", "icc_profile", "chromaticity", "srgb"}
    pixels = np.array(image).astype(int)
    assert not pixels[..., 2].any()
    return pixels[..., 0] + 256 * pixels[..., 1]


def decoded(address, kind):
    head, data = address.split(",", 1)
    assert head == f"data:image/{kind};base64"
    return io.BytesIO(base64.b64decode(data, validate=True))


def test_labels_tables_and_records_are_those_of_the_store(view, store, finished_store):
    page = view(store, store.ready_keys, width=300)
    assert len(page.cards) == len(store.ready_keys) == 6
    for key, card in zip(store.ready_keys, page.cards, strict=True):
        assert card["caption"].startswith(key)
        assert np.array_equal(labels_of(card), store.atoms(key).atoms)
        content, masks = json.loads(card["json"]), finished_store.masks[key]
        areas = masks.sum(axis=(1, 2))
        assert len(content["atoms"]) == store.atoms(key).n_atoms + 1
        for atom, listed in enumerate(content["atoms"]):
            covering = np.flatnonzero(masks[:, store.atoms(key).atoms == atom].any(axis=1)).tolist()
            assert listed == sorted(covering, key=lambda mask: (areas[mask], -mask))
        records = np.array(content["records"], float).reshape(-1, len(RECORD_COLUMNS))  # null becomes NaN
        expected = np.stack([store.records(key)[column] for column in RECORD_COLUMNS], axis=1)
        np.testing.assert_allclose(records, expected, rtol=5e-4)
        assert np.array_equal(records[:, :5], expected[:, :5])  # areas and boxes are integers
        assert np.isnan(records[:, -4:]).all()


def test_the_image_is_the_blurred_one_of_the_store(view, make_store, store_case):
    content = replace(store_case.contents[5], blurred=np.full((20, 30, 3), (200, 100, 50), np.uint8))
    page = view(make_store({"a": content}, images=True), ["a"])
    assert np.abs(image_of(page.cards[0]) - (200, 100, 50)).max() < 6  # JPEG
    assert "flat colour" not in page.html


def test_images_and_labels_are_shrunk_and_never_enlarged(view, store):
    page = view(store, ["GOPR0372_07_00/000047", "scene/small"], width=100)
    assert [image_of(card).shape for card in page.cards] == [(107, 100, 3), (20, 30, 3)]
    assert [labels_of(card).shape for card in page.cards] == [(107, 100), (20, 30)]


def test_shrunk_labels_are_pixels_of_the_plane(view, store):
    (card,) = view(store, ["GOPR0372_07_00/000047"], width=140).cards
    plane = store.atoms("GOPR0372_07_00/000047").atoms
    assert np.array_equal(labels_of(card), plane[1::2, 1::2])


def test_atoms_beyond_a_byte_keep_their_number(view, make_store):
    masks = np.eye(400, dtype=bool).reshape(400, 20, 20)
    plain = {"area": np.full(400, 1234567.0), "predicted_iou": np.full(400, 0.123456), "point_x": np.full(400, np.inf)}
    store = make_store({"a": ImageContent(AtomMap.from_masks(masks), plain)})
    (card,) = view(store, ["a"]).cards
    assert np.array_equal(labels_of(card), np.arange(1, 401).reshape(20, 20))
    row = dict(zip(RECORD_COLUMNS, json.loads(card["json"])["records"][0], strict=True))
    assert (row["area"], row["predicted_iou"], row["point_x"], row["crop_box_x"]) == (1234567, 0.1235, None, None)


def test_the_page_loads_nothing(view, store):
    page = view(store, store.ready_keys)
    assert not any(word in page.html for word in ("http:", "https:", "url(", "@import", "<link", "<iframe"))
    sources = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    assert len(sources) == len(store.ready_keys)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_the_head_says_what_the_store_is(view, store):
    page = view(store, ["scene/small", "scene/unreadable", "scene/not_yet"])
    masks = sum(store.atoms(key).n_masks for key in store.ready_keys)
    assert f"dataset gopro, split train, fingerprint {store.header.fingerprint[:12]}" in page.text["li"]
    assert f"9 images: 6 done, 2 quarantined, 1 pending; {masks} masks; 2 images on this page" in page.text["li"]
    assert json.loads(page.text["pre"]) == store.header.recipe


def test_quarantined_images_show_their_reason_and_pending_ones_no_card(view, store):
    done = []
    page = view(store, ["scene/not_yet", "scene/too_many", "scene/unreadable"], progress=done.append)
    assert [card["reason"] for card in page.cards] == [
        "quarantined: 70000 atoms",
        "quarantined: cannot be read: file is truncated",
    ]
    assert not any(card["labels"] or card["image"] or card["json"] for card in page.cards)
    assert done == [1, 1, 1]


def test_what_a_store_says_is_text(view, make_store, store_case):
    content = masks_alone(store_case.contents[5])
    names = {"dataset": HOSTILE, "split": HOSTILE, "recipe": {HOSTILE: HOSTILE + "\u2028\u2029&\"'"}}
    page = view(make_store({HOSTILE: content, HOSTILE + "2": HOSTILE}, **names), [HOSTILE, HOSTILE + "2"])
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert [tag for tag, _ in page.elements].count("script") == 2  # the data of one card, and the page's own
    assert HOSTILE not in page.html
    assert [card["caption"].startswith(HOSTILE) for card in page.cards] == [True, True]
    assert page.cards[1]["reason"] == f"quarantined: {HOSTILE}"
    assert page.text["h1"] == f"{HOSTILE} {HOSTILE}: masks"
    assert json.loads(page.text["pre"]) == names["recipe"]


def test_images_come_from_a_folder(view, make_store, store_case, tmp_path):
    content = masks_alone(store_case.contents[5])  # 20 x 30
    keys = ["s/plain", "s/lq", "s/gopro", "s/upper", "s/two", "s/none", "s/size", "s/broken"]
    store = make_store(dict.fromkeys(keys, content))
    folder = tmp_path / "images"
    for place, (height, width) in {
        "s/plain.png": (20, 30),
        "lq/s/lq.bmp": (20, 30),
        "s/blur/gopro.webp": (20, 30),
        "s/upper.PNG": (20, 30),
        "s/two.png": (30, 20),
        "sharp/s/two.png": (20, 30),
        "s/size.png": (20, 31),
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (200, 100, 50)).save(folder / place)
    (folder / "s/broken.png").write_bytes((folder / "s/plain.png").read_bytes()[:60])
    page = view(store, keys, images=folder)
    for card in page.cards[:5]:
        assert np.abs(image_of(card) - (200, 100, 50)).max() < 6
    assert [card["image"] for card in page.cards[5:]] == [None] * 3
    assert all(card["labels"] for card in page.cards)
    (line,) = [line for line in page.html.splitlines() if "flat colour" in line]
    for count in (f"1 not found in {folder}", f"1 of another size in {folder}", f"1 unreadable in {folder}"):
        assert count in line


def test_without_a_folder_masks_alone_are_on_flat_colour(view, make_store, store_case):
    content = masks_alone(store_case.contents[5])
    page = view(make_store({"a": content, "b": content}), ["a", "b"])
    assert page.text["li"].count("flat colour: 2 because the store holds masks alone") == 1
    assert [card["image"] for card in page.cards] == [None, None]


def test_a_name_does_not_lead_out_of_the_folder(view, make_store, store_case, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "secret.png")
    (tmp_path / "images/blur").mkdir(parents=True)
    keys = ["../secret", "blur/../../secret", str(tmp_path / "secret"), "nul\0inside", "long" * 100]
    page = view(make_store(dict.fromkeys(keys, masks_alone(store_case.contents[5]))), keys, images=tmp_path / "images")
    assert [card["image"] for card in page.cards] == [None] * len(keys)
    assert f"{len(keys)} not found" in page.text["li"]


def test_a_failure_leaves_the_old_page(store_copy, tmp_path):
    target = tmp_path / "view.html"
    target.write_text("old")
    (store_copy.path / "atoms/c/0/0/0").unlink()
    with pytest.raises(StoreDamaged, match="missing"):
        write_view(open_store(store_copy.path), target, ["GOPR0372_07_00/000047"])
    with pytest.raises(UnknownImage):
        write_view(open_store(store_copy.path), target, ["nowhere"])
    assert target.read_text() == "old"


def test_keys_are_chosen_by_pattern_and_spread_evenly(store):
    assert contact_keys(store, None, 99) == [key for key in store.keys if key != "scene/not_yet"]
    assert contact_keys(store, "scene/*o*", 99) == ["scene/one_pixel", "scene/without_masks", "scene/too_many"]
    assert contact_keys(store, None, 3) == [store.keys[0], store.keys[4], store.keys[7]]
    assert contact_keys(store, "*", 1) == [store.keys[0]]


@pytest.mark.parametrize("pattern", ["nothing*", "scene/not_yet", "SCENE/small"])
def test_a_pattern_that_matches_nothing_is_refused_in_one_line(store, pattern):
    with pytest.raises(StoreError, match=r"gopro\.zarr: no image that is prepared whose name matches") as error:
        contact_keys(store, pattern, 5)
    assert len(str(error.value).splitlines()) == 1


def test_a_store_without_a_prepared_image_has_no_contact_keys(store_case, tmp_path):
    store = open_store(store_case.at(tmp_path / "empty.zarr").create())
    with pytest.raises(StoreError, match=r"empty\.zarr: no image that is prepared$"):
        contact_keys(store, None, 5)


@pytest.mark.skipif(PROGRAM is None, reason="neither Chromium nor Chrome is here")
def test_a_browser_shows_masks_and_the_record_under_the_cursor(store, tmp_path):
    key = "GOPR0372_07_00/000047"
    write_view(store, tmp_path / "view.html", [key])
    atoms, areas = store.atoms(key), store.records(key)["area"]
    covering = np.flatnonzero(atoms.mask_table()[atoms.atoms[150, 140]])
    first, second = sorted(covering, key=lambda mask: (areas[mask], -mask))[:2]
    with Browser(900, 700) as window:
        window.open(tmp_path / "view.html")
        place = window.place(".image", 140.5 / 280, 150.5 / 300)
        for _ in range(1000):  # the labels are decoded meanwhile
            window.hover(*place)
            if not window.run("document.getElementById('panel').hidden"):
                break
            window.hover(2, 2)
        record = window.run("document.getElementById('panel').innerText").split("\n")
        assert record[:3] == [f"mask {first}", "area", f"{areas[first]:.0f}"]
        window.click(*place)
        assert window.run("document.getElementById('panel').innerText").startswith(f"mask {second}\n")
        window.hover(2, 2)
        assert window.run("document.getElementById('panel').hidden")
        assert window.problems == []

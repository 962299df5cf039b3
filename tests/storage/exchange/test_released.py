from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from samdeblur.storage import open_store
from samdeblur.storage.exchange.convert import ExchangeError, import_masks
from samdeblur.storage.sharing.verify import verify_store


@pytest.fixture
def import_folder(tmp_path):
    """Import the files written to `tmp_path / "folder"`; returns the store and what was said."""
    (tmp_path / "folder" / "deeper").mkdir(parents=True)

    def run():
        notes = import_masks(tmp_path / "folder", tmp_path / "made.zarr", None, "GoPro", "train")
        return open_store(tmp_path / "made.zarr"), notes

    return run


def npy(descr, shape, content=b"", fortran=False, version=(1, 0)):
    """The bytes of an NPY file that says this of itself."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran, "shape": shape}
    writer = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    writer(file, header)
    return file.getvalue() + content


def save_member(path, content, name="masks.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def test_grey_values_are_masks_in_ascending_order(import_folder, tmp_path):
    rng = np.random.default_rng(1)
    planes = {
        "a": rng.choice(np.array([0, 2, 4, 6, 255], np.uint8), (20, 30)),
        "deeper/b": np.zeros((5, 6), np.uint8),
        "deeper/c": np.full((1, 1), 9, np.uint8),
        "d": rng.permuted(np.arange(256, dtype=np.uint8)).reshape(16, 16),
    }
    for key, plane in planes.items():
        Image.fromarray(plane).save(tmp_path / "folder" / f"{key}.png")
    store, notes = import_folder()
    assert store.keys == store.ready_keys == sorted(planes)
    for key, plane in planes.items():
        masks = store.atoms(key).to_masks()
        expected = [plane == value for value in np.unique(plane) if value]
        assert masks.shape == (len(expected), *plane.shape)
        assert all(np.array_equal(mask, other) for mask, other in zip(masks, expected, strict=True))
        assert store.records(key)["area"].tolist() == [mask.sum() for mask in expected]
        assert np.isnan(store.records(key)["predicted_iou"]).all()
    assert any("no overlapping masks" in note for note in notes)
    assert any("predicted_iou of 260 masks" in note for note in notes)
    assert store.header.digest == "none"
    assert list(verify_store(store.path)) == []


def test_png_files_of_another_form_are_quarantined(import_folder, tmp_path):
    folder = tmp_path / "folder"
    Image.new("L", (6, 5), 7).save(folder / "sound.png")
    Image.new("I;16", (6, 5), 700).save(folder / "deep.png")
    for mode in ("RGB", "LA", "P", "1"):
        Image.new(mode, (6, 5)).save(folder / f"{mode}.png")
    Image.new("L", (6, 5)).save(folder / "jpeg.png", format="JPEG")
    (folder / "text.png").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    store, notes = import_folder()
    assert store.ready_keys == ["sound"]
    for key, reason in {
        "RGB": "pixel format RGB, not 8-bit grey",
        "deep": "pixel format I;16",
        "P": "pixel format P",
        "jpeg": "not a PNG",
        "text": "not a PNG",
        "cut": "cut off or damaged",
    }.items():
        assert reason in store.error(key)
    assert any("8 of 9 images quarantined" in note for note in notes)


def test_groups_are_masks_as_they_are(import_folder, tmp_path, random_masks):
    masks = random_masks(np.random.default_rng(5), 6, 17, 23)
    stored = {
        "planes": masks,
        "deeper/channel": masks[:, None],
        "turned": np.asfortranarray(masks),
        "turned_channel": np.asfortranarray(masks[:, None]),
        "one": masks[:1],
        "none": masks[:0],
    }
    for key, array in stored.items():
        np.savez(tmp_path / "folder" / f"{key}.npz", masks=array, more=np.arange(3))
    np.savez_compressed(tmp_path / "folder" / "packed.npz", masks=masks)
    store, notes = import_folder()
    assert store.keys == store.ready_keys == sorted([*stored, "packed"])
    for key, array in (stored | {"packed": masks}).items():
        assert np.array_equal(store.atoms(key).to_masks(), array.reshape(-1, 17, 23)), key
    assert any("background" in note for note in notes)


def test_npz_files_of_another_form_are_quarantined(import_folder, tmp_path):
    folder = tmp_path / "folder"
    np.savez(folder / "sound.npz", masks=np.ones((2, 3, 4), bool))
    np.savez(folder / "pickled.npz", masks=np.array([{"a": 1}, None], object))
    np.savez(folder / "bytes.npz", masks=np.ones((2, 3, 4), np.uint8))
    np.savez(folder / "flat.npz", masks=np.ones((3, 4), bool))
    np.savez(folder / "channels.npz", masks=np.ones((2, 3, 3, 4), bool))
    np.savez(folder / "named.npz", other=np.ones((2, 3, 4), bool))
    np.savez(folder / "too_many.npz", masks=np.ones((4097, 1, 1), bool))
    save_member(folder / "cut.npz", npy("|b1", (2, 3, 4), bytes(23)))
    save_member(folder / "long.npz", npy("|b1", (2, 3, 4), bytes(25)))
    save_member(folder / "second.npz", npy("|b1", (2, 3, 4), bytes(24), version=(2, 0)))
    save_member(folder / "negative.npz", npy("|b1", (-2, -3, 4), bytes(24)))
    save_member(folder / "no_npy.npz", b"no array")
    save_member(folder / "header.npz", b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000)
    (folder / "text.npz").write_text("no zip")
    damaged = bytearray((folder / "sound.npz").read_bytes())
    damaged[180] ^= 1  # a pixel: the checksum of the zip does not fit
    (folder / "damaged.npz").write_bytes(damaged)
    store, _ = import_folder()
    assert store.ready_keys == ["sound"]
    for key, reason in {
        "pickled": "type object, not bool",
        "bytes": "type uint8, not bool",
        "flat": "2 axes (3, 4)",
        "channels": "4 axes (2, 3, 3, 4)",
        "named": "no array named masks",
        "too_many": "4097 masks",
        "cut": "cut off",
        "long": "cut off",
        "second": "version 1.0",
        "negative": "not positive",
        "no_npy": "not an NPZ",
        "header": "header of its masks is damaged",
        "text": "not an NPZ",
        "damaged": "not an NPZ",
    }.items():
        assert reason in store.error(key), (key, store.error(key))


@pytest.mark.parametrize("shape", [(1 << 40, 3, 4), (2, 1 << 20, 1 << 20), (10**30, 1, 1), (1 << 30, 1 << 14, 1 << 14)])
@pytest.mark.parametrize("fortran", [False, True])
def test_absurd_shapes_are_refused_without_their_memory(shape, fortran, import_folder, tmp_path):
    save_member(tmp_path / "folder" / "absurd.npz", npy("|b1", shape, bytes(1 << 20), fortran))
    tracemalloc.start()
    try:
        with pytest.raises(ExchangeError, match="no image of 1 can be used, as absurd"):
            import_folder()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_of_several_kinds_needs_a_name(import_folder, tmp_path):
    Image.new("L", (6, 5), 7).save(tmp_path / "folder" / "a.png")
    np.savez(tmp_path / "folder" / "a.npz", masks=np.ones((2, 5, 6), bool))
    with pytest.raises(ExchangeError, match=r"files of .npz and .png in it do not tell its format; name one of"):
        import_folder()

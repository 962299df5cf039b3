from __future__ import annotations

import numpy as np
import pytest

from samdeblur.storage import MaskStore
from samdeblur.train import ConfigError
from samdeblur.train.data import cache
from samdeblur.train.data.cache import ImageCache
from samdeblur.train.data.crops import CropDataset, Cutting, Share
from samdeblur.train.data.loader import crop_loader

WINDOWS = [(0, 0, 30, 31), (3, 5, 20, 24), (29, 33, 1, 1)]


@pytest.fixture
def decoded(monkeypatch):
    """What is read of the store: (name, key, whether it was the whole image)."""
    read, calls = MaskStore.image, []

    def noted(self, name, key, window=None):
        calls.append((name, key, window is None))
        return read(self, name, key, window)

    monkeypatch.setattr(MaskStore, "image", noted)
    return calls


def size_of(store, keys):
    return sum(2 * 3 * int(np.prod(store.shape(key))) for key in keys)


@pytest.mark.parametrize("n_kept", [0, 1, 2, 4])
def test_windows_are_those_of_the_store_and_what_fits_is_decoded_once(store, decoded, n_kept):
    keys = store.keys
    images = ImageCache(store, keys, size_of(store, keys[:n_kept]) + 5)
    for _ in range(3):
        for key in keys:
            for name in ("blurred", "sharp"):
                for window in [(0, 0, *store.shape(key)), *WINDOWS[1:2]]:
                    expected = store.image(name, key)[
                        window[0] : window[0] + window[2], window[1] : window[1] + window[3]
                    ]
                    decoded.pop()
                    assert np.array_equal(images.image(name, key, window), expected)
    whole = [(name, key) for name, key, all_of_it in decoded if all_of_it]
    assert sorted(whole) == sorted((name, key) for key in keys[:n_kept] for name in ("blurred", "sharp"))
    assert len(decoded) - len(whole) == 3 * 2 * 2 * (4 - n_kept)


def test_without_room_windows_alone_are_read(store, decoded):
    ImageCache(store, store.keys, 0).image("sharp", store.keys[0], WINDOWS[1])
    assert decoded == [("sharp", store.keys[0], False)]


def test_workers_share_what_one_of_them_decoded(store):
    dataset = CropDataset(store, store.keys, Cutting(24), 0, with_atoms=False, cache_bytes=10**6)
    plain = CropDataset(store, store.keys, Cutting(24), 0, with_atoms=False)
    share = Share(2, 1, 8)
    batches = list(crop_loader(dataset, share, 2))
    for batch, expected in zip(batches, crop_loader(plain, share, 0), strict=True):
        assert np.array_equal(batch.blurred, expected.blurred)
        assert np.array_equal(batch.sharp, expected.sharp)
    assert dataset.cache._filled.all()  # by the workers, in the memory of this process
    assert np.array_equal(dataset.cache._whole(store.keys[2])[1], store.image("sharp", store.keys[2]))


def test_more_than_the_shared_memory_is_refused(store, monkeypatch):
    monkeypatch.setattr(cache.os, "statvfs", lambda path: type("Room", (), {"f_bavail": 1, "f_frsize": 4096}))
    with pytest.raises(ConfigError, match=r"cache_mb: .* MB do not fit into /dev/shm"):
        ImageCache(store, store.keys, 10**9)

"""A small preparation, and ways to end it early."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from samdeblur.models import NAFNet, with_prior
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.pipeline import (
    PrepSettings,
    StoreOptions,
    open_source,
    prepare,
)
from samdeblur.storage import files
from samdeblur.storage.format import durable
from samdeblur.storage.writing.fence import Fence

SHAPES = {"a/1": (40, 56), "a/2": (64, 48), "b": (44, 80), "c": (60, 42), "d": (1, 1)}


KEYS = sorted(SHAPES)


MASKLESS = "d"  # its only pixel is too large a share for a mask


CPU = PrepSettings(device="cpu")


TWO = StoreOptions(block_size=2)


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors handles this."""


def run(folder, path, settings=CPU, options=TWO, workers=1, **arguments):
    return prepare(open_source(str(folder), "test"), path, settings, options, workers, **arguments)


def save_network(path, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        path.write_bytes(encode_network(with_prior(NAFNet(8, [1], 1, [1]), None)))
    return path


@contextmanager
def killed_at(write):
    """Killed at this write of a file of the store or beside it."""
    count, durably, through_fence = iter(range(10**6)), files.write_durably, Fence.write

    def write_half(path, data):
        if next(count) == write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + files.PARTIAL).write_bytes(bytes(data)[:5])
            raise Killed
        durably(path, data)

    def do_not_rename(fence, path, data):
        if next(count) == write:
            raise Killed
        through_fence(fence, path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write_durably", write_half)
        patch.setattr(Fence, "write", do_not_rename)
        yield


def full(*_):
    raise OSError(28, "No space left on device", "/mnt/shard")

"""Whose fault an error is."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from samdeblur.models import DeviceError, NotFinite, let_go
from samdeblur.pipeline.job.blame import Blame, DeviceFailed, Unusable, alike, as_sent, blame, is_out_of_gpu_memory
from samdeblur.pipeline.sources.base import BadImage, SourceLost
from samdeblur.storage.atoms import TooManyAtoms

ACCELERATOR = getattr(torch, "AcceleratorError", RuntimeError)
OF = {
    Blame.IMAGE: [
        BadImage("x.png: cannot be decoded"),
        NotFinite("values"),
        TooManyAtoms("70000 atoms"),
        ValueError("too narrow"),
        IndexError("list index out of range"),
        OSError("image file is truncated"),  # Pillow's own, without a number
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ACCELERATOR("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a large input"),
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ],
    Blame.DEVICE: [
        ACCELERATOR("CUDA error: an illegal memory access was encountered"),
        ACCELERATOR("CUDA error: uncorrectable ECC error encountered"),
        ACCELERATOR("CUDA error: unspecified launch failure"),
        ACCELERATOR("CUDA error: misaligned address"),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        RuntimeError("Found no NVIDIA driver on your system."),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA driver error: unknown error"),
        RuntimeError("HIP error: invalid device function"),
        RuntimeError("Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost"),
        DeviceError("device cuda: torch sees no GPU"),
    ],
    Blame.MEMORY: [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    Blame.DISK: [
        SourceLost(errno.ESTALE, "Stale file handle", "/data/x.png"),
        OSError(errno.ENOSPC, "No space left on device", "/store/shard"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    Blame.ENVIRONMENT: [
        ModuleNotFoundError("No module named 'segment_anything'"),
        ImportError("libGL.so.1: cannot open shared object file"),
        PermissionError(errno.EACCES, "Permission denied", "/home/someone/.cache/numba"),
        OSError(errno.EROFS, "Read-only file system"),
        AttributeError("module 'numpy' has no attribute 'bool8'"),
        RuntimeError("can't start new thread"),
        NotImplementedError("aten::nms is not implemented for this backend"),
    ],
}


@pytest.mark.parametrize(
    ("expected", "error"), [(kind, e) for kind, errors in OF.items() for e in errors], ids=lambda v: str(v)[:40]
)
def test_an_error_is_put_down_to_what_it_is_of_and_travels(expected, error):
    assert blame(error) is expected
    sent = pickle.loads(pickle.dumps(as_sent(error, expected)))
    assert str(sent)
    assert "\n" not in str(sent)
    if expected is Blame.DEVICE:
        assert isinstance(sent, DeviceFailed | DeviceError)
    if expected is Blame.ENVIRONMENT:
        assert isinstance(sent, Unusable)


def test_memory_that_is_missing_before_any_image_is_the_device():
    """Somebody else's program was there first."""
    full = torch.OutOfMemoryError("CUDA out of memory")
    assert (blame(full), blame(full, loading=True)) == (Blame.IMAGE, Blame.DEVICE)
    assert is_out_of_gpu_memory(full)
    assert is_out_of_gpu_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert not is_out_of_gpu_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_errors_of_one_kind_have_one_name_and_the_content_of_files_has_none():
    def gone(code):
        bad = BadImage("x")
        bad.__cause__ = OSError(code, "gone")
        return bad

    assert alike(gone(errno.ENOENT), True) == alike(gone(errno.ENOENT), True) == "ENOENT"
    assert alike(gone(errno.EIO), True) == "EIO"
    assert alike(gone(errno.ENOENT), False) == ""  # it was not there when the store was planned
    assert alike(BadImage("not an image"), True) == ""
    assert alike(TooManyAtoms("many"), True) == ""
    assert alike(ValueError("image 12 of 700"), True) == alike(ValueError("image 3 of 45"), True) != ""


def test_an_error_that_is_kept_holds_no_tensor_while_memory_is_given_back(monkeypatch):
    """Neither in its own frames nor in those of the errors it came from."""
    import weakref

    held, given_back = [], []

    def fill():
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def work():
        beside = torch.ones(1000)
        held.append(weakref.ref(beside))
        try:
            fill()
        except torch.OutOfMemoryError as error:
            raise ValueError("no memory for an image") from error

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append([ref() is None for ref in held]))
    try:
        work()
    except ValueError as error:
        kept = error
        let_go(kept)
    assert given_back == [[True, True]]
    assert str(kept) == "no memory for an image"

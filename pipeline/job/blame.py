"""Whose fault an error is. Only the errors of an image are an image's; what it is processed with fails for any."""

from __future__ import annotations

import errno
import re
from enum import Enum

import torch

from samdeblur.models import DeviceError, NotFinite
from samdeblur.pipeline.sources.base import BadImage
from samdeblur.storage.writing.commits import TooManyAtoms


class Blame(Enum):
    """What an error is put down to.

    An image that cannot be processed is quarantined. For all else its block is done again: on a DEVICE in a fresh
    process, after a lack of MEMORY image by image, for a DISK, a mount or an ENVIRONMENT elsewhere.
    """

    IMAGE = "image"
    DEVICE = "device"
    MEMORY = "memory"
    DISK = "disk"
    ENVIRONMENT = "environment"


class DeviceFailed(RuntimeError):
    """A device gave an error that says nothing about an image."""


class Unusable(RuntimeError):
    """A worker cannot work here: its packages, its rights, its memory."""


class Blamed(Exception):
    """An error that is not the fault of the image at hand, on its way out of a block."""

    def __init__(self, blame: Blame, error: Exception, key: str = "") -> None:
        super().__init__(blame, error, key)
        self.blame, self.error, self.key = blame, error, key


# What the libraries of devices say. After most of these the process cannot use its device any more.
_DEVICE = re.compile(
    r"\b(CUDA|HIP|MPS|XPU|SYCL|Vulkan) (driver )?error|\b(cuda|hip)Error|\bcudnn error|\bMIOpen\b.*error"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT|CURAND|ROCBLAS|HIPBLAS)_STATUS|\bNVML\b|\bnvrtc\b|\bNCCL\b"
    r"|device-side assert|illegal (memory access|instruction)|misaligned address|unspecified launch failure"
    r"|\bECC\b|no kernel image|NVIDIA driver|GPU (is lost|has fallen off)|Triton Error",
    re.IGNORECASE,
)
# Those among them that are of the size of one image, and leave the device as it was.
_OF_SIZE = re.compile(r"out of memory|ALLOC_FAILED|NOT_SUPPORTED|invalid configuration argument", re.IGNORECASE)
_NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|not enough memory|insufficient memory", re.I)
_NO_RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ROOM = frozenset({errno.ENOMEM})


def blame(error: BaseException, loading: bool = False) -> Blame:
    """What an error is put down to.

    Args:
        loading: it came while models were loaded, before any image.
    """
    text = str(error)
    if isinstance(error, BadImage | NotFinite | TooManyAtoms):
        return Blame.IMAGE
    if isinstance(error, DeviceError):
        return Blame.DEVICE
    if isinstance(error, torch.OutOfMemoryError) or (_DEVICE.search(text) and _OF_SIZE.search(text)):
        return Blame.DEVICE if loading else Blame.IMAGE  # that of another program, which was there first
    if isinstance(error, _accelerator_errors()) or (isinstance(error, RuntimeError) and _DEVICE.search(text)):
        return Blame.DEVICE
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return Blame.MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _NO_ROOM:
            return Blame.MEMORY
        return Blame.ENVIRONMENT if error.errno in _NO_RIGHTS else Blame.DISK
    if isinstance(error, ImportError | NameError | NotImplementedError) or _of_a_module(error):
        return Blame.ENVIRONMENT
    if isinstance(error, RuntimeError) and "start new thread" in text:
        return Blame.ENVIRONMENT
    return Blame.IMAGE


def is_out_of_gpu_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or bool(
        _DEVICE.search(text) and re.search("out of memory|ALLOC_FAILED", text, re.I)
    )


def alike(error: BaseException, planned: bool) -> str:
    """A name for errors of one kind, for those of an image that may be something else's when they come in a row.

    What is wrong with the content of a file never is.

    Args:
        planned: whether the image could be read when the store was planned.
    """
    if isinstance(error, TooManyAtoms):
        return ""
    if isinstance(error, BadImage):
        cause = error.__cause__
        known = isinstance(cause, OSError) and cause.errno is not None
        return f"{errno.errorcode.get(cause.errno, cause.errno)}" if known and planned else ""  # type: ignore[union-attr]
    if is_out_of_gpu_memory(error):
        return "out of GPU memory"
    return f"{type(error).__name__}: {re.sub(r'[0-9]+', '0', str(error))[:60]}"


def as_sent(error: Exception, of: Blame) -> Exception:
    """An error that another process can unpack, and a person read."""
    if of is Blame.DISK and isinstance(error, OSError):
        return error
    if isinstance(error, DeviceError | DeviceFailed | Unusable):
        return error
    lines = str(error).strip().splitlines() or [""]
    message = f"{type(error).__name__}: {lines[0]}"
    return DeviceFailed(message) if of is Blame.DEVICE else Unusable(message)


def _accelerator_errors() -> tuple[type[BaseException], ...]:
    """Of versions of torch that have them; older ones raise RuntimeError."""
    found = getattr(torch, "AcceleratorError", None)
    return () if found is None else (found,)


def _of_a_module(error: BaseException) -> bool:
    """A library of another version: module 'x' has no attribute 'y'."""
    return isinstance(error, AttributeError) and str(error).startswith(("module ", "partially initialized module"))

"""What a precision means on a device, for inference and training alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def computing(device: torch.device, precision: str, repeatable: bool = False) -> Iterator[None]:
    """In which a network is called.

    Args:
        precision: "float32" with all its bits, "tf32", "float64" as float32, or mixed precision in "bfloat16" or
            "float16".
        repeatable: as for `kernels`.
    """
    half = HALVES.get(precision)
    with torch.autocast(device.type, half, enabled=half is not None), kernels(device, precision, repeatable):
        yield


@contextmanager
def kernels(device: torch.device, precision: str, repeatable: bool = False) -> Iterator[None]:
    """In which float32 has all its bits, unless the precision is "tf32".

    Left to itself torch lets cuDNN round the inputs of convolutions to the ten bits of TF32, and calls it float32.

    Args:
        repeatable: take no kernel whose sums come in another order each time.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    tf32, before = precision == "tf32", matmul.allow_tf32
    with cudnn.flags(
        enabled=True,
        benchmark=cudnn.benchmark and not repeatable,
        deterministic=repeatable or cudnn.deterministic,
        allow_tf32=tf32,
    ):
        matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            matmul.allow_tf32 = before


def device_facts(device: torch.device) -> dict[str, str]:
    """The device and the versions of what computes on it, which decide on the last bits of a result."""
    if device.type != "cuda":
        return {"device": "cpu", "instructions": torch.backends.cpu.get_cpu_capability()}
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),
    }

"""Whether an image fits into the memory at once, by what a small one takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from samdeblur.models.inference.precision import HALVES
from samdeblur.models.inference.tiles import OVERLAP, TILE
from samdeblur.models.priors.attach import Deblurrer
from samdeblur.models.priors.pooling import AtomBatch

PROBE = 128  # pixels
ROOM = 0.6  # share of the free memory that is taken at most
HELD = 2.0  # what is held at the peak, in what the largest layer takes and gives (docs/inference.md)


def tile_for(network: Deblurrer, height: int, width: int, precision: str = "float32") -> int | None:
    """Side of the tiles that an image is to be cut into; None where it fits as a whole, as far as that can be told."""
    if max(height, width) <= TILE + OVERLAP:
        return None
    device = next(network.parameters()).device
    free = free_bytes(device)
    half = 0.5 if precision in HALVES else 1.0
    return TILE if free is not None and half * bytes_per_pixel(network) * height * width > ROOM * free else None


@torch.inference_mode()
def bytes_per_pixel(network: Deblurrer) -> float:
    """About what a pass of the network holds at its peak, by what the layers take and give for a small image."""
    largest = 0

    def look(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        tensors = [tensor for tensor in tree_leaves((inputs, output)) if isinstance(tensor, Tensor)]
        largest = max(largest, sum(tensor.nbytes for tensor in tensors))

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(look) for module in leaves]
    try:
        weight = next(network.parameters())
        image = torch.zeros(1, 3, PROBE, PROBE, device=weight.device, dtype=weight.dtype)
        network(image, AtomBatch.background(1, PROBE, PROBE).to(weight.device))
    finally:
        for handle in handles:
            handle.remove()
    return HELD * largest / PROBE**2


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free for this process; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_free_of_machine(Path("/proc/meminfo")), _free_of_group(Path("/sys/fs/cgroup"))]
    return min((of for of in free if of is not None), default=None)


def _free_of_machine(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_group(folder: Path) -> int | None:
    """What the control group of a container or a job may still take."""
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None

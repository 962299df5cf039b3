"""Whether an image has room in the memory of a worker, told before it is tried."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import psutil
import torch
from distributed import get_worker
from numpy.typing import NDArray

from samdeblur.models import Deblurrer
from samdeblur.models.inference.memory import bytes_per_pixel, free_bytes
from samdeblur.pipeline.job.local import MEMORY
from samdeblur.pipeline.job.recipe import Stages
from samdeblur.pipeline.sources.base import BadImage

CPU = torch.device("cpu")


def require_room(image: NDArray[np.uint8], stages: Stages) -> None:
    """Raise BadImage for an image that certainly takes more memory than this worker has left.

    What a segmenter takes for each pixel it says itself, as `bytes_per_pixel`; one of another package may say nothing.
    Memory of a GPU is not counted: a lack of it is an error that can be caught.
    """
    takes = float(getattr(stages.segmenter, "bytes_per_pixel", 0.0))
    what = "finding its masks"
    if stages.network is not None and next(stages.network.parameters()).device == CPU:
        network = _of_network(stages.network)
        takes, what = max((takes, what), (network, "pre-deblurring it"))
    height, width = image.shape[:2]
    needed, left = takes * height * width, bytes_left()
    if left is not None and needed > left:
        raise BadImage(
            f"{width}x{height} pixels: {what} takes about {needed / 1e9:.1f} GB, and this worker has "
            f"{max(0.0, left / 1e9):.1f} GB left; give workers more memory (--memory-limit, or fewer --workers), then "
            "--retry-quarantined"
        )


@lru_cache(maxsize=1)
def _of_network(network: Deblurrer) -> float:
    return bytes_per_pixel(network)


def bytes_left() -> int | None:
    """Memory that this process may still take, by its limit and by what the machine has; None where nobody says."""
    free = free_bytes(CPU)
    try:
        limit = get_worker().memory_manager.memory_limit
    except (ValueError, AttributeError):  # not a worker
        limit = None
    if not limit:
        return free
    own = int(MEMORY["terminate"] * limit) - psutil.Process().memory_info().rss
    return own if free is None else min(own, free)

"""Memory of a device that ran full."""

from __future__ import annotations

import torch


def let_go(error: BaseException) -> None:
    """Drop what an error holds on to, then give back what torch keeps of the memory of a GPU for later.

    An error and those it came from hold the frames they passed, and these all their tensors: as long as the error is
    kept, so are they, and nothing is there to give back.
    """
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None:
            chain += [one.__cause__, one.__context__]
            one.__traceback__ = one.__cause__ = one.__context__ = None
    torch.cuda.empty_cache()

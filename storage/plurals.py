"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, thing: str, things: str = "") -> str:
    """ "1 image", "8 images", "1,111 images".

    Args:
        things: of several, where that is not `thing` with an s.
    """
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"

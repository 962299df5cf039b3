"""Errors of other people's code, in a line."""

from __future__ import annotations


def error_in_a_line(error: BaseException, most: int = 300) -> str:
    """ "ValueError: what it says", whatever it says, cut after so many characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"

"""The commands in this process."""

from programs import samdeblur

__all__ = ["samdeblur"]

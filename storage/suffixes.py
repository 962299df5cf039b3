"""Which files are images, by their names."""

from __future__ import annotations

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", *LOSSY_SUFFIXES)
# Images that are counted and named, not read: of more than 8 bits, or decoded so by Pillow without a word.
UNREAD_SUFFIXES = (
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".exr", ".hdr", ".pfm", ".tga", ".psd", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip

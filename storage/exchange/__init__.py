"""Masks of other programs and for them: COCO, SA-1B, the released SAM-Deblur, and run-length encoding.

One file per format. A store as one file for others to open is in `sharing`.
"""

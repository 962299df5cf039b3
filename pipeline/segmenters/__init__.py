"""From an image to masks: Segment Anything's mask generation, and superpixels.

Which segmenter a job uses, and with what settings, is in `job.recipe`.
"""

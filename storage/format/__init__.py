"""Format 1 on disk: arrays, grids, codecs, attributes, digests, and how bytes of chunks decode.

Nothing here opens a location or writes masks: see `access` and `writing`.
"""

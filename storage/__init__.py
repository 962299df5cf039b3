"""Masks as atoms, and the mask store.

`atoms` and `store` are what users name; rooms: `format` (what lies on disk), `access` (reading it from anywhere),
`writing`, `exchange` (formats of other programs), `sharing`. Nothing here knows networks or PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

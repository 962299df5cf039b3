"""From a dataset to a mask store.

Rooms: `sources` (image pairs), `segmenters` (masks), `job` (plan, workers, commits). Training and scores are elsewhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Networks on whole images: restoring, scoring, comparing, reporting.

`evaluate` runs a network over the images of `sets` and keeps `results`; numbers are made in `metrics`, compared in
`tables` and shown in `report`. Nothing here trains: see `samdeblur.train`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Training on mask stores.

The loop and its settings are here; rooms: `data` (crops), `trackers`, `sam` (the small Segment Anything model),
`presets/`. Scores and reports: `samdeblur.evaluation`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

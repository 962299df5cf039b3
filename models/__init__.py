"""Networks, the priors that tell them of masks, and their weights.

Rooms: `networks`, `priors`, `inference`, `checkpoints`; `bundled/` holds weights. Of `storage` only masks
(`AtomMap`) and files are used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

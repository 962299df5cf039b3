"""Networks, the priors that tell them of masks, and their weights.

Rooms: `networks`, `priors`, `inference`, `checkpoints`; `bundled/` holds weights. Of `storage` only masks
(`AtomMap`) and files are used.
"""

from samdeblur.models.checkpoints.loading import CheckpointError, describe_checkpoint, load_network, load_sam
from samdeblur.models.inference.deblur import DeviceError, NotFinite, OutOfMemory, deblur, pick_device
from samdeblur.models.inference.precision import computing, device_facts
from samdeblur.models.inference.release import let_go
from samdeblur.models.inference.tiles import TileError, check_tiles, forward_in_tiles
from samdeblur.models.inference.tlc import LocalAveragePool, local_pooling
from samdeblur.models.networks.nafnet import NAFNet
from samdeblur.models.priors.attach import Deblurrer, with_prior
from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.cat import CATPrior
from samdeblur.models.priors.dropout import drop_masks
from samdeblur.models.priors.map_unit import MAPUnit
from samdeblur.models.priors.methods import METHODS, SEMANTICS, prior_for
from samdeblur.models.priors.pooling import AtomBatch, mask_average_pool
from samdeblur.models.priors.released import ReleasedMAPUnit

__all__ = [
    "METHODS",
    "SEMANTICS",
    "AtomBatch",
    "CATPrior",
    "CheckpointError",
    "Deblurrer",
    "DeviceError",
    "LocalAveragePool",
    "MAPUnit",
    "NAFNet",
    "NotFinite",
    "OutOfMemory",
    "Prior",
    "ReleasedMAPUnit",
    "TileError",
    "check_tiles",
    "computing",
    "deblur",
    "describe_checkpoint",
    "device_facts",
    "drop_masks",
    "forward_in_tiles",
    "let_go",
    "load_network",
    "load_sam",
    "local_pooling",
    "mask_average_pool",
    "pick_device",
    "prior_for",
    "with_prior",
]

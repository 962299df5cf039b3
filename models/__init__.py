"""Networks, the priors that tell them of masks, and their weights."""

from samdeblur.models.attach import Deblurrer, with_prior
from samdeblur.models.checkpoints import CheckpointError, describe_checkpoint, load_network, load_sam
from samdeblur.models.dropout import drop_masks
from samdeblur.models.inference import DeviceError, NotFinite, OutOfMemory, deblur, pick_device
from samdeblur.models.nafnet import NAFNet
from samdeblur.models.pooling import AtomBatch, mask_average_pool
from samdeblur.models.priors import METHODS, SEMANTICS, CATPrior, MAPUnit, Prior, prior_for
from samdeblur.models.released import ReleasedMAPUnit
from samdeblur.models.tiles import TileError, check_tiles, forward_in_tiles
from samdeblur.models.tlc import LocalAveragePool, local_pooling

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
    "deblur",
    "describe_checkpoint",
    "drop_masks",
    "forward_in_tiles",
    "load_network",
    "load_sam",
    "local_pooling",
    "mask_average_pool",
    "pick_device",
    "prior_for",
    "with_prior",
]

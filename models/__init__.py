"""Networks, the priors that tell them of masks, and their weights."""

from samdeblur.models.attach import Deblurrer, with_prior
from samdeblur.models.checkpoints import CheckpointError, load_network, load_sam
from samdeblur.models.inference import DeviceError, NotFinite, deblur, pick_device
from samdeblur.models.nafnet import NAFNet
from samdeblur.models.pooling import AtomBatch, drop_masks, mask_average_pool
from samdeblur.models.priors import METHODS, CATPrior, MAPUnit, Prior, prior_for

__all__ = [
    "METHODS",
    "AtomBatch",
    "CATPrior",
    "CheckpointError",
    "Deblurrer",
    "DeviceError",
    "MAPUnit",
    "NAFNet",
    "NotFinite",
    "Prior",
    "deblur",
    "drop_masks",
    "load_network",
    "load_sam",
    "mask_average_pool",
    "pick_device",
    "prior_for",
    "with_prior",
]

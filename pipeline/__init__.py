"""From a dataset to a mask store.

Rooms: `sources` (image pairs), `segmenters` (masks), `job` (plan, workers, commits). Training and scores are elsewhere.
"""

from samdeblur.pipeline.job.blame import DeviceFailed, Unusable
from samdeblur.pipeline.job.cluster import ClusterLost, Resources, WorkerKilled, Workers
from samdeblur.pipeline.job.coordinator import Status, prepare, status
from samdeblur.pipeline.job.plan import Plan, StoreOptions, make_plan
from samdeblur.pipeline.job.recipe import PrepSettings, Weights
from samdeblur.pipeline.job.summary import Summary
from samdeblur.pipeline.segmenters.base import Segmenter
from samdeblur.pipeline.segmenters.mask_generator import MaskGenerator, SettingsError
from samdeblur.pipeline.segmenters.sam import BUNDLED_SETTINGS, SamSegmenter
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter
from samdeblur.pipeline.sources.base import BadImage, Source, SourceError, SourceLost
from samdeblur.pipeline.sources.folders import FolderSource
from samdeblur.pipeline.sources.opening import open_source

__all__ = [
    "BUNDLED_SETTINGS",
    "BadImage",
    "ClusterLost",
    "DeviceFailed",
    "FolderSource",
    "MaskGenerator",
    "Plan",
    "PrepSettings",
    "Resources",
    "SamSegmenter",
    "Segmenter",
    "SettingsError",
    "Source",
    "SourceError",
    "SourceLost",
    "Status",
    "StoreOptions",
    "Summary",
    "SuperpixelSegmenter",
    "Unusable",
    "Weights",
    "WorkerKilled",
    "Workers",
    "make_plan",
    "open_source",
    "prepare",
    "status",
]

"""From a dataset to a mask store: sources, the stages, and the job that runs them."""

from samdeblur.pipeline.cluster import ClusterLost, Resources, WorkerKilled, Workers
from samdeblur.pipeline.coordinator import Status, prepare, status
from samdeblur.pipeline.masks import MaskGenerator, SettingsError
from samdeblur.pipeline.plan import Plan, StoreOptions, make_plan
from samdeblur.pipeline.recipe import PrepSettings, Weights
from samdeblur.pipeline.segment import BUNDLED_SETTINGS, SamSegmenter, Segmenter
from samdeblur.pipeline.sources import BadImage, FolderSource, Source, SourceError, SourceLost, open_source
from samdeblur.pipeline.summary import Summary
from samdeblur.pipeline.superpixels import SuperpixelSegmenter

__all__ = [
    "BUNDLED_SETTINGS",
    "BadImage",
    "ClusterLost",
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
    "Weights",
    "WorkerKilled",
    "Workers",
    "make_plan",
    "open_source",
    "prepare",
    "status",
]

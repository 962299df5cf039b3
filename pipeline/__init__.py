"""From a dataset to a mask store: sources, the stages, and the job that runs them."""

from samdeblur.pipeline.coordinator import Status, Summary, prepare, status
from samdeblur.pipeline.masks import MaskGenerator, SettingsError
from samdeblur.pipeline.plan import StoreOptions
from samdeblur.pipeline.recipe import PrepSettings, Weights
from samdeblur.pipeline.segment import BUNDLED_SETTINGS, SamSegmenter, Segmenter
from samdeblur.pipeline.sources import BadImage, FolderSource, Source, SourceError, open_source
from samdeblur.pipeline.superpixels import SuperpixelSegmenter

__all__ = [
    "BUNDLED_SETTINGS",
    "BadImage",
    "FolderSource",
    "MaskGenerator",
    "PrepSettings",
    "SamSegmenter",
    "Segmenter",
    "SettingsError",
    "Source",
    "SourceError",
    "Status",
    "StoreOptions",
    "Summary",
    "SuperpixelSegmenter",
    "Weights",
    "open_source",
    "prepare",
    "status",
]

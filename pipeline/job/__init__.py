"""A preparation as a job: settings and recipe, the plan, blocks of work, workers on Dask, commits, the summary.

What is done to one image is in `segmenters` and `samdeblur.models`.
"""

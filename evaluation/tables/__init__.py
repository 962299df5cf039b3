"""Several evaluations side by side: what may be compared, means and intervals, the paper's Table 1.

Scores of images are in `metrics`, HTML is in `report`.
"""

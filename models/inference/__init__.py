"""Whole images through a network: local pooling (TLC), tiles, from pixels to pixels.

Scores are in `samdeblur.evaluation`.
"""

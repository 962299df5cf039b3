"""Families of Segment Anything, each behind the three calls that mask generation makes of a model (`base.Adapter`).

What a file or folder is, is in `recognise`. Filters, crops and records are the generator's and of no family.
"""

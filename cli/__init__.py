"""The commands: parsing, progress and messages; no logic.

A program per file here, its commands in `commands`, what they share in `support`, job files in `jobs/`.
"""

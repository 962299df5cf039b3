"""The commands: parsing, progress and messages; no logic."""

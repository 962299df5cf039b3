"""Where image pairs come from: folders and their layouts, the embedded sample, procedural worlds.

Each source gives what `base` says. Image files are decoded in `storage.decode`.
"""

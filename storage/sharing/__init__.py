"""A store for other people: one file to send, its check, its contact sheet and its figures.

Other formats of masks are in `exchange`.
"""

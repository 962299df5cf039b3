"""One file per command of `samdeblur-prep` and `samdeblur-eval`: options and messages.

What several commands share is in `support`.
"""

"""How masks enter a store: leases, commits of blocks, stores filled in one go, merged, cut and compared.

The work that finds masks is in `samdeblur.pipeline`; masks of other programs come through `exchange`.
"""

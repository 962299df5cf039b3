"""What a network is told of the masks: pooling (Algorithm 1), dropout, MAP and CAT, and attaching them to networks.

No file here reads weights or runs a whole image: see `checkpoints` and `inference`.
"""

"""Network architectures: NAFNet and the small Segment Anything model.

Priors are in `priors`, weights in `checkpoints`.
"""

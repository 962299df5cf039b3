"""Training of the small Segment Anything model: prompts, the loop, how good its masks are.

The training of deblurring networks is one folder up.
"""

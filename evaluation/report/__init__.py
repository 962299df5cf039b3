"""Results to look at: the HTML page, its scripts (`web/`) and the images beside it.

The numbers in it come from `tables`.
"""

"""How good masks are: by themselves, and beside others of the same images. Networks are scored one room up."""

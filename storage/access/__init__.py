"""Getting at a store's bytes wherever it lies: folders, zips, HDF5, http and S3, and the header that is checked first.

What the bytes mean to a user, masks by key, is in `storage.store`; what is written, in `writing`.
"""

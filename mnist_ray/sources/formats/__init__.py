"""The formats of inputs, a module each, with what several of them share.

In comes a `Location` whose format `sources/open.py` has recognized; out comes a `Source`. Arrays share `arrays.py`,
folders and archives `encoded.py`. A format knows nothing of the others, except that Keras' cache holds IDX and `.npz`
files, and that shards are Parquet.
"""

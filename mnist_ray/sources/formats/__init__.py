"""One module a format: each opens what it recognizes as a `Source`.

In comes a `Location` that `sources/open.py` has chosen the format of; out comes a `Source`. A format knows no other
format, but for what archives, folders and tables share (`encoded.py`, `columns.py`, `arrays.py`).
"""

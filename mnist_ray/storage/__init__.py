"""Every byte that is read or written: files and folders on any filesystem that `pyarrow.fs` opens.

In comes a path or a URI (`s3://…`, `gs://…`); out comes a `Location` whose files appear whole and under their
names in one step. Knows nothing of images or models.
"""

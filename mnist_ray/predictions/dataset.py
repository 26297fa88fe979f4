"""The predictions of a finished output as one pyarrow dataset."""

from __future__ import annotations

import pyarrow.dataset as ds

from mnist_ray.predictions.verify import load
from mnist_ray.storage.location import Location


def open_predictions(output: Location) -> ds.Dataset:
    """The parts of an output, or of a run's folder, in the order of the input.

    Raises InputError if there is no output, RetryableError if it is unfinished.
    """
    root, _, manifest = load(output)
    paths = [(root / part["path"]).path for part in manifest["parts"]]
    found = ds.dataset(paths, filesystem=root.filesystem, format="parquet")
    return found.replace_schema(found.schema.remove_metadata())  # it is that of the first part

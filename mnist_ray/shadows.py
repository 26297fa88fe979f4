"""Files that Python would import in place of a package, such as keras.py in the working directory.

Ray puts the working directory first on the search path of its processes, as `python -m` does. This module must itself
import nothing that such a file could replace.
"""

from __future__ import annotations

import os
import sys

PACKAGES = frozenset({
    "absl", "aiohttp", "boto3", "botocore", "click", "cloup", "google", "grpc", "h5py", "jinja2", "jsonschema", "keras",
    "ml_dtypes", "msgpack", "numpy", "openvino", "optree", "packaging", "pandas", "PIL", "psutil", "pyarrow",
    "pydantic", "ray", "requests", "rich", "tensorboard", "tensorflow", "typing_extensions", "yaml",
})  # fmt: skip
"""Packages that our processes import. With a file in place of one, no job can succeed."""

ANY = PACKAGES | sys.stdlib_module_names


def shadow(folder: str = ".", names: frozenset[str] = ANY) -> str | None:
    """The message for files in the folder that are called like one of `names`; None where there are none."""
    found = [
        file
        for name in sorted(names)
        for file in (f"{name}.py", f"{name}/__init__.py")
        if os.path.exists(f"{folder}/{file}")  # noqa: PTH110 - pathlib imports what may be replaced
    ]
    if not found:
        return None
    where = os.path.abspath(folder)  # noqa: PTH100 - as above
    return (
        f"Python would import {', '.join(found)} in {where} in place of its own package of that name; rename"
        f" {'them' if len(found) > 1 else 'it'}, or start in another folder"
    )

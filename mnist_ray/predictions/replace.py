"""`score --overwrite`: an output is made beside that of another job, and takes its place when it is whole.

    .NAME.new   the new one, hidden, until it is whole
    .NAME.old   the old one, for the moment that replacing takes; where that was cut short, it is put back

A local folder is replaced by renaming, twice: for that moment nothing has its name.

Object storage cannot rename. There the old objects are removed, the manifest first, then the new ones are copied within
the storage, the manifest last. So at any moment one of the two is whole, and who reads by the manifest finds the old
output, an unfinished one, or the new one, never files of both. Who has read the old manifest before finds a part gone,
or one with another sha256 than it says. Cut short, the output is unfinished, and the same command goes on copying.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.predictions.plan import MANIFEST, PLAN, QUARANTINE, Plan, is_ours, is_part, sweep
from mnist_ray.storage.location import Location, io_errors

_PROGRESS = "progress.json"  # where there are no locks, its heartbeat is one: it stays


def place(output: Location, job: Mapping[str, Any]) -> Location:
    """Where to write: beside an output of another job, else right into it. What goes on is where it was begun.

    job: fields of the plan to come, as far as they are known. Raises InputError where the output holds files of
    somebody else, which a replacement would lose.
    """
    new, old = beside(output)
    if old.exists():
        if _has_plan(output):
            old.delete()
        else:
            output.delete()
            _rename(old, output)
    if _is_of(new, job):
        return new
    if _has_plan(new):  # of a third job
        _remove(new)
    if not _has_plan(output) or _is_of(output, job):
        _remove(new)
        return output
    for file in output.list():
        if not is_ours(file.name):
            raise InputError(
                f"{output} holds {file.name}, which no scoring has written; move it away, or choose another --output"
            )
    return new


def replace(output: Location, new: Location) -> None:
    """Put the new one, which is whole, in the old one's place."""
    _, old = beside(output)
    if output.is_local:
        _rename(output, old)
        _rename(new, output)
        old.delete()
        return
    sweep(output)
    for name in (MANIFEST, "metrics.json"):  # no longer finished
        (output / name).delete()
    for file in [*(output / QUARANTINE).list(), *output.list()]:
        if file.name not in (_PROGRESS, QUARANTINE):
            file.delete()
    _copy(new / PLAN, output / PLAN)
    for file in (new / QUARANTINE).list():
        _copy(file, output / QUARANTINE / file.name)
    for file in new.list():
        if file.name not in (PLAN, QUARANTINE, _PROGRESS, MANIFEST):
            _copy(file, output / file.name)
    _copy(new / MANIFEST, output / MANIFEST)
    new.delete()


def beside(output: Location) -> tuple[Location, Location]:
    """Where the new output lies until it is whole, and the old one for a moment. Raises InputError for a bucket."""
    if output.parent == output:
        raise InputError(f"{output} has no place beside it for --overwrite; give --output a folder within it")
    return output.parent / f".{output.name}.new", output.parent / f".{output.name}.old"


def _has_plan(output: Location) -> bool:
    return any(file.name in (PLAN, MANIFEST) or is_part(file.name) for file in output.list())


def _is_of(output: Location, job: Mapping[str, Any]) -> bool:
    try:
        plan = Plan.load(output)
    except InputError:  # damaged
        return False
    given = dict(job)
    if plan is not None and given.get("input_digest") == plan.mended_digest:
        given["input_digest"] = plan.input_digest
    return plan is not None and all(getattr(plan, name) == value for name, value in given.items())


def _remove(output: Location) -> None:
    sweep(output)  # an unfinished upload is none of the objects in it
    output.delete()


def _rename(old: Location, new: Location) -> None:
    with io_errors(new, "write"):
        Path(old.path).rename(new.path)


def _copy(old: Location, new: Location) -> None:
    with io_errors(new, "write"):
        new.filesystem.copy_file(old.path, new.path)

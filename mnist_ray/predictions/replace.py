"""`score --overwrite`: write a new output beside the old one, and replace the old one when the new one is complete.

    .NAME.new   the new output until it is complete
    .NAME.old   the old output while it is being replaced; put back if that is interrupted

A local folder is replaced by renaming twice. Between the two, no folder has the output's name.

Object storage cannot rename. There the old objects are deleted, the manifest first, and the new ones are copied within
the storage, the manifest last. So at any moment one of the two outputs is complete, and a reader that starts from the
manifest finds the old output, an unfinished one, or the new one, but never a mixture. A reader that has the old
manifest already finds a part missing, or one with another sha256. If the copying is interrupted, the output is
unfinished, and the same command continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.predictions.plan import LOGS, MANIFEST, PLAN, QUARANTINE, WORKER_LOGS, Plan, is_ours, is_part, sweep
from mnist_ray.storage import fence
from mnist_ray.storage.location import Location, io_errors

_LOCKS = (".lock", ".lease")  # of the driver at work: they stay with the output


def target(output: Location, job: Mapping[str, Any]) -> Location:
    """Where to write: beside an output of another job, else into the output itself. An interrupted job continues
    where it began.

    job: the fields of the coming plan that are known. Raises InputError where the output holds files of somebody else,
    which replacing would delete.
    """
    new, old = beside(output)
    if old.exists():
        _finish_or_undo_renaming(output, old)
    if _is_of(new, job):
        return new
    if _is_output(new):  # of a third job
        _remove(new)
    if not _is_output(output) or _is_of(output, job):
        _remove(new)
        return output
    for file in output.list():
        if not is_ours(file.name):
            raise InputError(
                f"{output} holds {file.name}, which mnist-ray did not write; move it away, or choose another --output"
            )
    if output.is_local and Path(output.path).is_mount():
        raise InputError(f"{output} is a mount point, which cannot be renamed for --overwrite; give a folder within it")
    return new


def replace(output: Location, new: Location) -> None:
    """Put the complete output `new` in the place of `output`."""
    if output.is_local:
        _, old = beside(output)
        _move_locks(output, new)  # a network filesystem cannot delete a folder with an open file
        _rename(output, old)
        _rename(new, output)
        old.delete()
    else:
        _delete_objects(output)
        _copy_objects(new, output)
        new.delete()


def beside(output: Location) -> tuple[Location, Location]:
    """The folders of the new and of the old output during a replacement. Raises InputError for a whole bucket."""
    if output.parent == output:
        raise InputError(f"{output} has no folder beside it for --overwrite; give --output a folder within it")
    return output.parent / f".{output.name}.new", output.parent / f".{output.name}.old"


def _finish_or_undo_renaming(output: Location, old: Location) -> None:
    if _is_output(output):
        old.delete()
    else:
        _move_locks(output, old)
        output.delete()
        _rename(old, output)


def _move_locks(source: Location, target: Location) -> None:
    for name in _LOCKS:
        if (source / name).is_file():
            _rename(source / name, target / name)


def _is_output(folder: Location) -> bool:
    return any(file.name in (PLAN, MANIFEST) or is_part(file.name) for file in folder.list())


def _is_of(folder: Location, job: Mapping[str, Any]) -> bool:
    """Whether a folder holds an output, finished or not, of this job."""
    try:
        plan = Plan.load(folder)
    except InputError:  # damaged
        return False
    if plan is None:
        return False
    wanted = dict(job)
    if wanted.get("input_digest") == plan.mended_digest:
        wanted["input_digest"] = plan.input_digest
    return all(getattr(plan, field) == value for field, value in wanted.items())


def _remove(output: Location) -> None:
    sweep(output)  # deleting the objects would leave unfinished uploads behind
    output.delete()


def _delete_objects(output: Location) -> None:
    sweep(output)
    for name in (MANIFEST, "metrics.json"):  # first, so that the output is unfinished from here on
        (output / name).delete()
    for file in [*(output / QUARANTINE).list(), *output.list()]:
        if file.name not in (*_LOCKS, QUARANTINE):
            file.delete()


def _copy_objects(new: Location, output: Location) -> None:
    _copy(new / PLAN, output / PLAN)
    for folder in (QUARANTINE, LOGS, WORKER_LOGS):
        for file in (new / folder).list():
            if not WORKER_LOGS.endswith(f"/{file.name}"):
                _copy(file, output / folder / file.name)
    for file in new.list():
        if file.name not in (PLAN, QUARANTINE, LOGS, MANIFEST):
            _copy(file, output / file.name)
    _copy(new / MANIFEST, output / MANIFEST)


def _rename(old: Location, new: Location) -> None:
    fence.check()
    with io_errors(new, "write"):
        Path(old.path).rename(new.path)


def _copy(old: Location, new: Location) -> None:
    fence.check()
    with io_errors(new, "write"):
        new.filesystem.copy_file(old.path, new.path)

"""What an error of Ray's means: remote code raised something, or a process was lost."""

from __future__ import annotations

from mnist_ray.errors import UserError


def raised_remotely(error: Exception) -> Exception | None:
    """What remote code raised: its UserError, or `error` where it is anything else. None where a process was lost."""
    from ray.exceptions import RayActorError, RayTaskError, UnserializableException

    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, UserError) else error
    if isinstance(error, UnserializableException):  # it was raised, and cannot be rebuilt here
        return error
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return error
    return None

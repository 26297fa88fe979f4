"""What an error of Ray's means: remote code raised something, or a process was lost."""

from __future__ import annotations

import re

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


_FULL = re.compile(r"Memory on the node \(IP: ([^,)]+).*?\) was ([\d.]+)GB used / ([\d.]+)GB limit")
_PROCESS = re.compile(r"\tip: (\S+)\n.*its worker process has died")
_NODE = re.compile(r"\tip: (\S+)\n.*its node has died.*\n\s+the actor's node was terminated (\w+): (.*?)\.?(?:\n|$)")

_MORE_MEMORY = "give it more memory (a pod: its limit), or start fewer workers or actors on it"


def why_lost(*errors: BaseException) -> str | None:
    """Why a process was lost, and what to do, from what Ray says of it; None where it says nothing of that.

    Of several errors, those that name memory come first. Ray's errors have all of this in words alone
    (src/ray/raylet/worker_killing_policy.cc, python/ray/exceptions.py).
    """
    text = "\n".join(map(str, errors))
    if found := _FULL.search(text):
        node, used, limit = found.groups()
        return f"the memory of node {node} was full ({used} of {limit} GiB); {_MORE_MEMORY}"
    if found := _NODE.search(text):
        node, how, reason = found.groups()
        hint = f"; if its memory was full, {_MORE_MEMORY}" if how == "unexpectedly" else ""
        return f"node {node} has ended ({reason}){hint}"
    if found := _PROCESS.search(text):
        return f"a process on node {found[1]} ended suddenly; if the node's memory was full, {_MORE_MEMORY}"
    return None


def loss(what: str, error: BaseException) -> str:
    """`what` was lost, and why."""
    reason = why_lost(error)
    return f"{what}: {reason}" if reason else f"{what} ({type(error).__name__})"

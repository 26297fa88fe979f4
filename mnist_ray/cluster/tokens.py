"""The token that a Ray cluster may require: where ours comes from, and what a refusal means."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_ray.errors import SetupError


def token_source() -> str | None:
    """Where Ray finds the token that it sends, in words; None where it sends none."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"the file {path} (RAY_AUTH_TOKEN_PATH)"
    default = Path("~/.ray/auth_token").expanduser()
    return f"the file {default}" if default.is_file() else None


def refused(where: str) -> SetupError:
    """The error for a cluster that refused what we sent, or that we sent no token."""
    mode, source = os.environ.get("RAY_AUTH_MODE", "token").lower(), token_source()
    if source:
        problem = f"another token than that in {source}; export the cluster's token as RAY_AUTH_TOKEN"
    elif mode != "token":
        problem = f"a token, and RAY_AUTH_MODE={mode} sends none; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    else:
        problem = "a token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    return SetupError(f"{where} requires {problem}", see="clusters.md#tokens")

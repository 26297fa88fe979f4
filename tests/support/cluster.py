"""Ray clusters as users start them, by `ray start`."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from pathlib import Path

from tests.support.command import environment, free_port
from tests.support.process import Process


class Cluster:
    """Hosts, each a `ray start` in a session of its own with CPUs of its own. They want a token, and have their files
    in a folder of their own, so that `auto` in `env` means this cluster.

    Never `ray stop`, which would take other Rays of this machine along.
    """

    def __init__(self, home: Path, *, num_cpus: int = 1, dashboard: bool = False, metrics_port: int = 0) -> None:
        self._home, self._nodes = home, list[Process]()
        files = tempfile.mkdtemp(prefix="", dir=os.environ["RAY_TMPDIR"])
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": files}
        self.address, self.dashboard = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        ports = {"port": self.address, "dashboard-port": self.dashboard}
        given = [f"--{name}={address.partition(':')[2]}" for name, address in ports.items()]
        given += [f"--metrics-export-port={metrics_port}"] if metrics_port else []
        given += [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
        self.metrics_port = metrics_port
        self.head = self._start("--head", *given, f"--include-dashboard={str(dashboard).lower()}", num_cpus=num_cpus)
        if dashboard:
            self.head.until("the dashboard is up", lambda: not socket.socket().connect_ex(_parts(self.dashboard)))

    @property
    def env(self) -> dict[str, str]:
        """Of a user with the token."""
        return environment(self._home, **self.token)

    @property
    def joined(self) -> dict[str, str]:
        """For the environment of commands that are to use this cluster."""
        return {**self.token, "RAY_ADDRESS": self.address}

    def add(self, num_cpus: int = 1, **env: str) -> Process:
        return self._start(f"--address={self.address}", num_cpus=num_cpus, **env)

    def _start(self, *args: str, num_cpus: int, **env: str) -> Process:
        """Until it is up: on one machine, hosts that start at once take each other's files."""
        common = ("--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--num-cpus={num_cpus}")
        log = self._home / f"node-{self.address.partition(':')[2]}-{len(self._nodes)}"
        node = Process("ray", "start", *args, *common, env={**self.env, **env}, log=log)
        self._nodes.append(node)
        node.until("it is up", lambda: "will now block" in node.said())
        return node

    def remove(self) -> None:
        for node in reversed(self._nodes):
            node.remove()


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)

"""Hosts on one machine: a network namespace each, joined by a switch that loses packets, and whose cables can be cut.

All of it lies in namespaces of its own: nothing of this machine's network is touched. They share the file system, but
for the folders that a host has for itself, and the table of processes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.command import BIN, environment, free_port
from tests.support.process import Process

PORT = 6379
DELAY, LOSS = "1ms", 0.002
"""Of each packet that a host sends: so much later, and with this probability not at all."""


class Hosts:
    """`num_hosts` hosts with a CPU each, on which a Ray runs as `ray start` makes it. The first one is the head."""

    def __init__(self, home: Path, num_hosts: int, *, own: str | None = None) -> None:
        """own: a folder that each host but the first has for itself."""
        self._home, self._own, self._nodes = home, own, dict[int, Process]()
        self._name = f"mr{os.getpid() % 100_000}"
        self.addresses = [f"10.87.0.{10 + number}" for number in range(num_hosts)]
        self.address = f"{self.addresses[0]}:{PORT}"
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
        self._namespaces = [f"{self._name}-{number}" for number in range(num_hosts)]
        try:
            self._wire()
            for number in range(num_hosts):
                self.start(number)
        except BaseException:
            self.remove()
            raise

    def _wire(self) -> None:
        self._switch = f"{self._name}-switch"
        _run(f"ip netns add {self._switch}")
        _run(f"ip -n {self._switch} link add switch type bridge")
        _run(f"ip -n {self._switch} link set switch up")
        for number, (name, address) in enumerate(zip(self._namespaces, self.addresses, strict=True)):
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link add eth0 type veth peer name port{number} netns {self._switch}")
            _run(f"ip -n {self._switch} link set port{number} master switch up")
            _run(f"ip -n {name} address add {address}/24 dev eth0")
            _run(f"ip -n {name} link set lo up")
            _run(f"ip -n {name} link set eth0 up")
            self.is_delayed = _can(f"tc -n {name} qdisc add dev eth0 root netem delay {DELAY} loss {LOSS:%}")
            self.is_lossy = self.is_delayed or _can(
                f"ip netns exec {name} iptables -A OUTPUT -o eth0 -m statistic --mode random --probability {LOSS}"
                " -j DROP"
            )

    @property
    def env(self) -> dict[str, str]:
        return environment(self._home, **self._token)

    def start(self, number: int) -> Process:
        """`ray start` on a host, and wait until it is up."""
        head = ("--head", f"--port={PORT}", "--include-dashboard=false", "--disable-usage-stats")
        words = [*head] if number == 0 else [f"--address={self.address}"]
        words += [f"--node-ip-address={self.addresses[number]}", "--num-cpus=1", "--object-store-memory=100000000"]
        words = [str(BIN / "ray"), "start", *words, f"--dashboard-agent-listen-port={free_port()}", "--block"]
        node = self._nodes[number] = self._process(number, f"host-{number}-{free_port()}", *words)
        node.until("it is up", lambda: "will now block" in node.said(), 180)
        return node

    def command(self, number: int, *args: str | Path) -> Process:
        """`mnist-ray` on a host."""
        words = map(str, (BIN / "mnist-ray", *args))
        return self._process(number, f"command-{number}-{free_port()}", *words)

    def _process(self, number: int, log: str, *words: str) -> Process:
        line = shlex.join(words)
        if self._own and number:  # `ip netns exec` gives a mount namespace as well
            line = f"mount -t tmpfs tmpfs {shlex.quote(self._own)} && exec {line}"
        command = ("ip", "netns", "exec", self._namespaces[number], "sh", "-c", line)
        return Process("/usr/bin/env", *command, env=self.env, log=self._home / log)

    def cut_off(self, number: int) -> None:
        _run(f"ip -n {self._switch} link set port{number} down")

    def connect(self, number: int) -> None:
        _run(f"ip -n {self._switch} link set port{number} up")

    def processes(self, number: int, name: str) -> list[int]:
        """Those of a host whose title begins so."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self._namespaces[number]], capture_output=True, text=True, check=True
        )
        found = [int(pid) for pid in pids.stdout.split()]
        return [pid for pid in found if _title(pid).startswith(name)]

    def node(self, number: int) -> Process:
        return self._nodes[number]

    def remove(self) -> None:
        for node in reversed(self._nodes.values()):
            node.remove()
        for name in (*self._namespaces, self._switch):
            _can(f"ip netns del {name}")


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _run(line: str) -> None:
    subprocess.run(shlex.split(line), check=True, capture_output=True)


def _can(line: str) -> bool:
    try:
        return subprocess.run(shlex.split(line), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def require_namespaces() -> None:
    """Skip the test where this user may not make hosts."""
    name = f"mr{os.getpid() % 100_000}-try"
    if not _can(f"ip netns add {name}"):
        pytest.skip("this user may not make network namespaces (or there is no `ip`)")
    try:
        if not _can(f"ip -n {name} link add switch type bridge"):
            pytest.skip("this kernel has no network bridges")
    finally:
        _can(f"ip netns del {name}")

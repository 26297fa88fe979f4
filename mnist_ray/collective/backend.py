"""The Ray Train backend whose workers form a ring before the training function begins."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from ray.train.backend import Backend, BackendConfig

from .forming import Listener, connect
from .ring import Ring

_listener: Listener | None = None
_ring: Ring | None = None


class RingConfig(BackendConfig):
    """`DataParallelTrainer(…, backend_config=RingConfig())`: the workers can call `get_ring()`.

    timeout: seconds, for forming the ring and for each wait in it. Unlike `ray.train.tensorflow` it imports TensorFlow
    in neither the driver nor the controller.
    """

    def __init__(self, *, timeout: float = 60.0) -> None:
        self.timeout = timeout

    @property
    def backend_cls(self) -> type[Backend]:
        return RingBackend


class RingBackend(Backend):
    """Forms a new ring, with a new secret, for every group of workers that Ray Train starts.

    It holds no state, since Ray creates a backend in each process.
    """

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        import ray

        assert isinstance(backend_config, RingConfig)
        addresses = worker_group.execute(_listen)
        secret = secrets.token_bytes(32)
        # All at once, since each waits for its neighbours.
        ray.get(
            [
                worker_group.execute_single_async(rank, _connect, rank, addresses, secret, backend_config.timeout)
                for rank in range(len(addresses))
            ]
        )


def _listen() -> tuple[str, int]:
    import ray

    global _listener
    _listener = Listener(ray.util.get_node_ip_address())
    return _listener.address


def _connect(rank: int, addresses: Sequence[tuple[str, int]], secret: bytes, timeout: float) -> None:
    global _ring
    assert _listener is not None
    if _ring is not None:
        _ring.close()
    _ring = connect(_listener, rank=rank, addresses=addresses, secret=secret, timeout=timeout)


def get_ring() -> Ring:
    """This worker's place in the ring. Raises RuntimeError outside a worker that was started with `RingConfig`."""
    if _ring is None:
        raise RuntimeError("this process is not in a ring; start the trainer with backend_config=RingConfig()")
    return _ring

"""The Ray Train backend whose workers form a ring, while the training function begins."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any

from ray.train.backend import Backend, BackendConfig

from .forming import Listener, connect
from .neighbour import RingError
from .ring import Ring

_FORMING_SECONDS = 45.0  # at most: all workers have been started before

_listener: Listener | None = None
_ring: Future[Ring] | None = None


class RingConfig(BackendConfig):
    """`DataParallelTrainer(…, backend_config=RingConfig())`: the workers can call `get_ring()`.

    timeout: seconds, for each wait in the ring; for forming it, 45 at most. Unlike `ray.train.tensorflow` it imports
    TensorFlow in neither the driver nor the controller.
    """

    def __init__(self, *, timeout: float = 60.0) -> None:
        self.timeout = timeout

    @property
    def backend_cls(self) -> type[Backend]:
        return RingBackend


class RingBackend(Backend):
    """Forms a new ring, with a new secret, for every group of workers that Ray Train starts.

    It holds no state, since Ray creates a backend in each process. The ring is formed in the background, and `get_ring`
    raises what goes wrong: Ray Train counts errors of the training function, not those of a backend.
    """

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, RingConfig)
        ranks = range(len(worker_group))
        addresses = _answers(worker_group.execute_async(_listen))
        secret = secrets.token_bytes(32)
        _answers(
            [
                worker_group.execute_single_async(rank, _connect, rank, addresses, secret, backend_config.timeout)
                for rank in ranks
            ]
        )


def _answers(references: Sequence[Any]) -> list[Any]:
    """What all ranks have answered, in their order. Raises RingError where one is lost."""
    import ray
    from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

    answers = []
    for rank, reference in enumerate(references):
        try:
            answers.append(ray.get(reference, timeout=_FORMING_SECONDS))
        except (RayActorError, OutOfMemoryError, GetTimeoutError) as error:
            raise RingError(f"rank {rank} was lost before the ring was formed: {error}", rank) from None
    return answers


def _listen() -> tuple[str, int]:
    import ray

    global _listener
    _listener = Listener(ray.util.get_node_ip_address())
    return _listener.address


def _connect(rank: int, addresses: Sequence[tuple[str, int]], secret: bytes, timeout: float) -> None:
    """Begin to form the ring, and return at once."""
    global _ring
    assert _listener is not None
    if _ring is not None and _ring.done() and not _ring.exception():
        _ring.result().close()
    listener, _ring = _listener, Future()
    Thread(target=_form, args=(_ring, listener, rank, addresses, secret, timeout), daemon=True, name="form").start()


def _form(
    place: Future[Ring],
    listener: Listener,
    rank: int,
    addresses: Sequence[tuple[str, int]],
    secret: bytes,
    timeout: float,
) -> None:
    try:
        ring = connect(listener, rank=rank, addresses=addresses, secret=secret, timeout=min(timeout, _FORMING_SECONDS))
        ring.timeout = timeout
        place.set_result(ring)
    except BaseException as error:
        place.set_exception(error)


def get_ring() -> Ring:
    """This worker's place in the ring, once all workers are in it.

    Raises RingError where one of them is lost, and RuntimeError outside a worker that was started with `RingConfig`.
    """
    if _ring is None:
        raise RuntimeError("this process is not in a ring; start the trainer with backend_config=RingConfig()")
    return _ring.result()

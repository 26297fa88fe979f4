"""Any Keras model with any optimizer, over the ring in plain processes, becomes what it becomes in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.collective import RingError, backend
from tests.support.collective_work import BATCHES, CASES, WITH_THREE, Case, data, table
from tests.support.ring_processes import run_in_ring

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(480)]  # `results` makes all, on a busy machine slowly

EQUAL = [name for name in CASES if name not in ("clip_before", "normalized", "float32", "overflow")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one set of processes: importing TensorFlow takes longer than any of them."""
    folder = tmp_path_factory.mktemp("collective")
    run_in_ring("tests.support.collective_work:all_cases", folder, 3, timeout=460)
    return folder


def ranks(results: Path, world: int, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(results / f"{name}-{world}-{rank}.npz")) for rank in range(world)]


def plain(results: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(results / f"{name}-plain.npz"))


def furthest(ours: dict[str, np.ndarray], other: dict[str, np.ndarray], *kinds: str) -> float:
    """The largest difference between two results' arrays of these kinds."""
    names = [name for name in other if name.startswith(kinds)]
    assert names
    assert names == [name for name in ours if name.startswith(kinds)]
    return max(float(np.abs(np.asarray(ours[name], np.float64) - other[name]).max()) for name in names)


def of_world(names: list[str]) -> list[tuple[int, str]]:
    return [(world, name) for world in (2, 3) for name in names if world == 2 or name in WITH_THREE]


@pytest.mark.parametrize(("world", "name"), of_world(EQUAL))
def test_is_one_process_over_the_same_global_batches(results: Path, world: int, name: str) -> None:
    reference = plain(results, name)
    for rank in ranks(results, world, name):
        assert rank["weights/0"].dtype == np.float64
        assert furthest(rank, reference, "weights") < 1e-9
        assert len(rank["history/loss"]) == len(reference["history/loss"])
        assert furthest(rank, reference, *shown(name)) < 1e-9


def shown(name: str) -> tuple[str, ...]:
    # Keras makes the losses of single outputs means over batches.
    return ("history/loss",) if name == "two_of_each" else ("history/",)


@pytest.mark.parametrize(("world", "name"), of_world(list(CASES)))
def test_every_rank_has_the_same_bits(results: Path, world: int, name: str) -> None:
    first, *others = ranks(results, world, name)
    for other in others:
        assert furthest(other, first, "weights", "history/loss") == 0


def test_the_ranks_began_apart_and_rank_0_decided(results: Path) -> None:
    first, second = ranks(results, 2, "adam")
    assert furthest(second, first, "start") > 0.1
    assert furthest(first, plain(results, "adam"), "start") == 0


def test_training_moves_weights_further_than_the_tolerance(results: Path) -> None:
    for name in CASES:
        rank = ranks(results, 2, name)[0]
        moved = [
            float(np.abs(rank[f"weights/{index}"] - rank[f"start/{index}"]).max())
            for index in range(len(rank))
            if f"start/{index}" in rank
        ]
        assert max(moved) > 1e-3, name


def test_clipping_before_the_sum_would_be_seen(results: Path) -> None:
    before, reference = ranks(results, 2, "clip_before")[0], plain(results, "global_clipnorm")
    assert furthest(before, reference, "weights") > 1e-4
    assert furthest(plain(results, "clip_before"), reference, "weights") > 0.01  # so clipping does something at all


def test_unused_and_frozen_weights_stay(results: Path) -> None:
    first, second = ranks(results, 2, "still")
    for rank in (first, second):
        for index in range(3):
            np.testing.assert_array_equal(rank[f"weights/{index}"], first[f"start/{index}"])
    assert furthest(second, first, "start") > 0.1


def test_moving_statistics_are_averaged_over_the_workers(results: Path) -> None:
    case = CASES["normalized"]
    x, _ = data(sum(case.batches), 1)
    mean, variance = np.zeros(x.shape[1]), np.ones(x.shape[1])
    for batch in 2 * np.split(x, np.cumsum(case.batches)[:-1]):
        parts = np.split(batch, 2)
        mean = 0.9 * mean + 0.1 * np.mean([part.mean(0) for part in parts], 0)
        variance = 0.9 * variance + 0.1 * np.mean([part.var(0) for part in parts], 0)
    for rank in ranks(results, 2, "normalized"):
        np.testing.assert_allclose(rank["weights/2"], mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rank["weights/3"], variance, rtol=0, atol=1e-12)


def test_float32_is_close_to_one_process(results: Path) -> None:
    rank, reference = ranks(results, 2, "float32")[0], plain(results, "float32")
    assert rank["weights/0"].dtype == np.float32
    assert furthest(rank, reference, "weights") < 1e-3
    assert furthest(rank, reference, "history/loss") < 1e-5


def test_a_step_that_overflows_is_skipped_by_all(results: Path) -> None:
    first, second = ranks(results, 2, "overflow")
    assert np.isfinite(first["weights/0"]).all()
    assert furthest(second, first, "weights") == 0


def test_workers_that_share_a_seed_drop_other_units(results: Path) -> None:
    first, second = (np.load(results / f"masks-{rank}.npz") for rank in (0, 1))
    np.testing.assert_array_equal(first["alone"], second["alone"])
    assert 0.3 < (first["kept"] == second["kept"]).mean() < 0.7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("apart", "compile with data_parallel(optimizer, ring)"),
        ("inner", "data_parallel(keras.optimizers.LossScaleOptimizer(optimizer), ring)"),
        ("xla", "jit_compile=False"),
        ("steps", "same number of steps, but from rank 0 on they have [3, 4]"),
    ],
)
def test_what_cannot_be_data_parallel_is_refused_before_the_first_step(results: Path, name: str, told: str) -> None:
    for rank in (0, 1):
        assert told in str(np.load(results / f"refusals-{rank}.npz")[name])


def test_callbacks_decide_alike_although_the_ranks_saw_different_losses(results: Path) -> None:
    first, second = ranks(results, 2, "watching")
    assert abs(first["local_loss"] - second["local_loss"]) > 0.01
    assert 2 < len(first["history/loss"]) < CASES["watching"].epochs  # EarlyStopping has acted
    assert len(set(first["history/learning_rate"])) > 1  # and so has ReduceLROnPlateau
    assert furthest(second, first, "history/") == 0


def test_the_rings_error_is_kept_when_a_peer_dies(results: Path) -> None:
    told = np.load(results / "death-0.npz")
    assert "rank 1 is gone" in str(told["raised"])
    assert "rank 1 is gone" in str(told["kept"])
    assert str(told["at_fault"]) == "1"
    assert not (results / "death-1.npz").exists()


def test_shares_are_awkward() -> None:
    assert table(Case(), 3).tolist() == [[24, 20, 20], [20, 24, 20], [20, 20, 24], [1, 2, 2]]
    assert table(Case(), 2)[-1].tolist() == [4, 1]
    for world in (2, 3):
        assert (table(CASES["blank"], world) == 0).any(0).any()
    assert BATCHES[-1] < BATCHES[0]


def test_there_is_no_ring_outside_a_worker() -> None:
    with pytest.raises(RuntimeError, match="RingConfig"):
        backend.get_ring()


@pytest.mark.parametrize("kind", ["RayActorError", "OutOfMemoryError", "GetTimeoutError"])
def test_a_rank_that_is_lost_before_the_ring_is_formed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says in the error why, and nobody else knows."""
    import ray

    lost = getattr(ray.exceptions, kind)("the memory of its node was full")

    def get(reference: str, timeout: float) -> str:
        if reference == "rank 1":
            raise lost
        return reference

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(RingError, match=r"^rank 1 was lost before the ring was formed: ") as raised:
        backend._answers(["rank 0", "rank 1"])
    assert raised.value.rank == 1
    assert str(lost) in str(raised.value)

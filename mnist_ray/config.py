"""Every option: its meaning, unit, bounds and its one default. The CLI, the environment and TOML all read them here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import isinf
from operator import ge, gt, le, lt
from typing import Any

from mnist_ray.errors import InputError

_FIRST: Any = ...  # the option has no default: it is a positional argument


def option(
    default: Any,
    help: str,  # noqa: A002 - click's word for it
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    changes_result: bool = False,
) -> Any:
    """A dataclass field with what users must know of it. `low`/`high` include the bound, `above`/`below` do not."""
    metadata = {
        "help": help,
        "bounds": ((low, "at least", ge), (high, "at most", le), (above, "more than", gt), (below, "less than", lt)),
        "choices": choices,
        "metavar": metavar,
        "changes_result": changes_result,
    }
    return field(metadata=metadata) if default is _FIRST else field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all commands share: the checks."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, rules = getattr(self, spec.name), spec.metadata
            for bound, words, holds in rules["bounds"]:
                if None not in (bound, value) and not holds(value, bound):
                    raise InputError(f"{flag(spec.name)} must be {words} {bound}, not {value}")
            if isinstance(value, float) and isinf(value):
                raise InputError(f"{flag(spec.name)} must be finite, not {value}")
            if rules["choices"] and value is not None and value not in rules["choices"]:
                raise InputError(f"{flag(spec.name)} must be one of {', '.join(rules['choices'])}, not {value!r}")

    def fingerprint(self) -> dict[str, Any]:
        """The values that change the result; workers, addresses and failure budgets are not among them."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["changes_result"]}


def flag(name: str) -> str:
    """The option as the user types it: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Cluster(Options):
    """Where the work runs."""

    address: str | None = option(
        None, "Ray cluster: auto, HOST:PORT or ray://…; a local Ray of its own when unset", metavar="ADDR"
    )
    wait_for_resources: float = option(
        0.0, "seconds to wait for an autoscaling cluster to grow to what is asked", low=0
    )


@dataclass(frozen=True, kw_only=True)
class Sharding(Options):
    """How a dataset is cut."""

    num_shards: int = option(
        48, "shards a split; the order of training follows from it, so it is never derived from the workers",
        low=1, high=100_000, changes_result=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Training(Options):
    """How a classifier is trained."""

    num_workers: str = option("2", "train workers; MIN:MAX trains on with fewer when nodes go", metavar="N|MIN:MAX")
    cpus_per_worker: float = option(1.0, "CPUs each worker reserves; 0.5 shares a core", above=0)
    epochs: int = option(5, "passes over the training images", low=1, changes_result=True)
    batch_size: int = option(64, "images per gradient update, over all workers", low=1, changes_result=True)
    architecture: str = option(
        "mlp", "mlp, cnn, or MODULE:FUNCTION of your own", metavar="mlp|cnn|MODULE:FUNCTION", changes_result=True
    )
    precision: str = option(
        "float32", "of the computation", choices=("float64", "float32", "bfloat16"), changes_result=True
    )
    dropout: float = option(0.2, "share of hidden units dropped while training", low=0, below=1, changes_result=True)
    learning_rate: float = option(0.001, "Adam's step size", above=0, changes_result=True)
    seed: int = option(0, "of weights, order and dropout", low=0, high=2**31 - 1, changes_result=True)
    validation_fraction: float = option(
        0.0, "share of the training images held out by the seed and evaluated each epoch", low=0, below=1,
        changes_result=True,
    )  # fmt: skip
    keep_best: bool = option(
        False, "the model of the epoch with the best validation accuracy, not of the last", changes_result=True
    )
    checkpoint_every: int | None = option(
        None, "steps between checkpoints within an epoch; one an epoch when unset", low=1
    )
    keep: int = option(3, "newest checkpoints that are kept", low=1)
    use_gpu: bool = option(False, "reserve one GPU for each train worker")
    max_failures: int = option(3, "restarts of the workers before the run fails; -1: no limit", low=-1)

    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) train workers. Raises InputError where `--num-workers` is neither N nor MIN:MAX."""
        parts = self.num_workers.split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise InputError(f"--num-workers must be N or MIN:MAX, not {self.num_workers!r}")
        fewest, most = int(parts[0]), int(parts[-1])
        if not 1 <= fewest <= most:
            raise InputError(f"--num-workers needs 1 <= MIN <= MAX, not {self.num_workers!r}")
        return fewest, most

    def require_shards(self, num_shards: int) -> None:
        """Raises InputError where there are fewer shards than train workers: each needs one of its own."""
        most = self.worker_range()[1]
        if most > num_shards:
            raise InputError(
                f"{most} train workers need at least as many shards, but there are {num_shards}; use fewer"
                " --num-workers or more --num-shards",
                see="runs.md#workers-and-cpus",
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.worker_range()
        if self.keep_best and not self.validation_fraction:
            raise InputError("--keep-best needs --validation-fraction: the test images must not choose the model")


@dataclass(frozen=True, kw_only=True)
class Scoring(Options):
    """How images are scored."""

    num_actors: int | None = option(
        None, "scoring actors, one CPU each; as many as the images and the CPUs allow when unset", low=1
    )
    max_bad: float = option(
        0.01, "share of images that may be quarantined before the job fails with exit code 3", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """Which run this is and where it lies."""

    storage: str = option("./storage", "path or URI (s3://…, gs://…) under which runs lie", metavar="URI")
    name: str = option("mnist", "of the run; the same name goes on with the same run")
    fresh: bool = option(False, "remove what is there under this name and start anew")

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = self.name.replace("-", "").replace("_", "").replace(".", "")
        if not (allowed.isascii() and allowed.isalnum()) or self.name.startswith("."):
            raise InputError(f"--name must be letters, digits, '-', '_' and '.', not {self.name!r}")


# The bases are listed last first: so come the options in --help.


@dataclass(frozen=True, kw_only=True)
class Data(Options):
    """What is trained on."""

    data: str = option(
        "embedded",
        "embedded, an IDX, class-folder or Parquet directory, an .npz file, or keras:NAME",
        metavar="SRC",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Cluster, Scoring, Training, Sharding, Run, Data):
    """`mnist-ray run`: the whole job."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Cluster, Sharding):
    """`mnist-ray shard SRC DEST`: images → Parquet shards."""

    source: str = option(_FIRST, "what `--data` takes", metavar="SRC")
    destination: str = option(_FIRST, "path or URI of the folder to make", metavar="DEST")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Cluster, Training, Run):
    """`mnist-ray train SHARDS`: a run's folder, up to the model."""

    shards: str = option(_FIRST, "what `mnist-ray shard` wrote", metavar="SHARDS")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Cluster, Scoring):
    """`mnist-ray score INPUT`: predictions for any number of images."""

    input: tuple[str, ...] = option(
        _FIRST, "what `--data` takes, or what `mnist-ray shard` wrote; globs, and lists of paths (.txt)",
        metavar="INPUT...",
    )  # fmt: skip
    model: str = option(_FIRST, "a run's folder or a .keras file", metavar="MODEL")
    output: str = option(_FIRST, "path or URI of the folder to write", metavar="URI")
    split: str = option("test", "of an input that has splits", choices=("train", "test"))
    id_column: str | None = option(None, "Parquet column that names a row; `id` where there is one", metavar="NAME")
    label_column: str | None = option(
        None, "Parquet column of class numbers; `label` where there is one", metavar="NAME"
    )
    image_column: str | None = option(None, "Parquet column of the images; `image` when unset", metavar="NAME")
    resize: str | None = option(None, "make all images so many pixels high and wide", metavar="HxW")
    gray: bool = option(False, "make RGB images gray")
    limit: int | None = option(None, "score only the first images", low=1)
    pixels: str | None = option(
        None, "what the model takes; asked of the model itself when unset", choices=("0-255", "0-1")
    )
    precision: str | None = option(
        None, "of the computation; that of the training when unset", choices=("float64", "float32", "bfloat16")
    )
    jit: str = option(
        "auto", "compile the model by XLA; auto: measured on the first images", choices=("auto", "on", "off")
    )
    batch_size: int | None = option(None, "images that the model computes at once; measured when unset", low=1)
    top_k: int | None = option(
        None, "keep the N most probable classes of each image, not all probabilities", low=1, metavar="N"
    )
    retry_quarantined: bool = option(
        False, "score what an output has quarantined, after you have mended it, and nothing else that is done"
    )
    overwrite: bool = option(False, "replace what another job has written there, once the new output is whole")

    def size(self) -> tuple[int, int] | None:
        """(height, width) of `--resize`. Raises InputError where it is none."""
        if self.resize is None:
            return None
        parts = self.resize.lower().split("x")
        if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
            raise InputError(f"--resize must be HxW in pixels of at most 4096, such as 28x28, not {self.resize!r}")
        return int(parts[0]), int(parts[1])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size()
        if self.overwrite and self.retry_quarantined:
            raise InputError("--overwrite and --retry-quarantined exclude each other: one makes anew, the other mends")

"""Every option of every command, with its one default. Flags, the environment and TOML files all read them here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mnist_ray.errors import InputError
from mnist_ray.options import Group, Options, PathOrUri, argument, configuration, flag, option, required

DATA_FORMATS = {
    "embedded": "embedded (MNIST itself)",
    "keras": "keras:NAME (mnist or fashion_mnist)",
    "shards": "what `mnist-ray shard` wrote",
    "idx": "a directory of IDX files",
    "npz": "an .npz file",
    "npy": "an .npy file",
    "images": "a folder of images by class",
    "parquet": "Parquet files",
    "tar": "tar archives of images",
    "zip": "ZIP archives of images",
    "tfrecord": "TFRecord files",
    "csv": "CSV tables of pixels",
}
"""What `--data`, SRC and INPUT take: a key for each format, and the words for it in help texts and messages."""


def accepted_data() -> str:
    """All of DATA_FORMATS as an enumeration, for help texts and messages."""
    *others, last = DATA_FORMATS.values()
    return f"{', '.join(others)} or {last}"


@configuration
class Cluster(Options):
    """Where the work runs."""

    address: str | None = option(
        None, "Ray cluster to use: auto, HOST:PORT or ray://HOST:PORT.", group=Group.RESOURCES, metavar="ADDR",
        unset="a local Ray for this command",
    )  # fmt: skip
    wait_for_resources: float = option(
        0.0, "Seconds to wait until the cluster has the CPUs that are needed: at the start, and when a node is lost in"
        " training (0: for 10 minutes).", group=Group.RESOURCES, low=0, metavar="SECONDS",
    )  # fmt: skip


@configuration
class Talk(Options):
    """What a job prints."""

    quiet: bool = option(False, "Print only warnings and the result.", group=Group.OUTPUT)
    log_format: str = option(
        "text", "Format of what is printed; json has an object in each line, with the run and its phase.",
        group=Group.OUTPUT, choices=("text", "json"),
    )  # fmt: skip


@configuration
class Tracking(Options):
    """Where else it is shown."""

    mlflow: str | None = option(
        None, "MLflow server or database to log to, such as http://HOST:5000 or sqlite:///mlflow.db; auto takes"
        " MLFLOW_TRACKING_URI.", group=Group.OUTPUT, metavar="URI", unset="none",
    )  # fmt: skip
    mlflow_experiment: str | None = option(
        None, "MLflow experiment, made if there is none.", group=Group.OUTPUT, metavar="NAME",
        unset="MLFLOW_EXPERIMENT_NAME, else mnist-ray",
    )  # fmt: skip


@configuration
class Sharding(Options):
    """How a dataset is cut."""

    # Never derived from the workers: the order of training follows from the shards.
    num_shards: int = option(
        48, "Shards to cut each split into: at least one for each train worker. The order of training depends on it.",
        group=Group.DATA, low=1, high=100_000, metavar="N", changes_result=True,
    )  # fmt: skip


@configuration
class Training(Options):
    """How a classifier is trained."""

    num_workers: str | int = option(
        "2", "Number of train workers. With MIN:MAX, training continues with fewer when nodes leave.",
        group=Group.RESOURCES, metavar="N|MIN:MAX",
    )  # fmt: skip
    cpus_per_worker: float = option(
        1.0, "CPUs to reserve for each train worker; with 0.5, two share a core.", group=Group.RESOURCES,
        above=0, metavar="CPUS",
    )  # fmt: skip
    epochs: int = option(
        5, "Passes over the training images.", group=Group.TRAINING, low=1, metavar="N", changes_result=True
    )
    batch_size: int = option(
        64, "Images per gradient update, over all workers together.", group=Group.TRAINING, low=1, metavar="N",
        changes_result=True,
    )  # fmt: skip
    architecture: str = option(
        "mlp", "mlp, cnn, or your own function (image_shape, num_classes) -> keras.Model.", group=Group.MODEL,
        metavar="mlp|cnn|MODULE:FUNCTION", changes_result=True,
    )  # fmt: skip
    precision: str = option(
        "float32", "Number format to compute in.", group=Group.MODEL, choices=("float64", "float32", "bfloat16"),
        changes_result=True,
    )  # fmt: skip
    dropout: float = option(
        0.2, "Share of hidden units to drop during training.", group=Group.MODEL, low=0, below=1, metavar="SHARE",
        changes_result=True,
    )  # fmt: skip
    learning_rate: float = option(
        0.001, "Step size of the Adam optimizer.", group=Group.TRAINING, above=0, metavar="RATE", changes_result=True
    )
    seed: int = option(
        0, "Seed of the initial weights, the order of the images and dropout.", group=Group.TRAINING,
        low=0, high=2**31 - 1, metavar="N", changes_result=True,
    )  # fmt: skip
    validation_fraction: float = option(
        0.0, "Share of the training images to hold out (chosen by the seed) and to evaluate after each epoch.",
        group=Group.TRAINING, low=0, below=1, metavar="SHARE", changes_result=True,
    )  # fmt: skip
    keep_best: bool = option(
        False, "Keep the model of the epoch with the best validation accuracy, not that of the last epoch. Needs"
        " --validation-fraction.", group=Group.TRAINING, changes_result=True,
    )  # fmt: skip
    checkpoint_every: int | None = option(
        None, "Steps between checkpoints within an epoch.", group=Group.RECOVERY, low=1, metavar="STEPS",
        unset="one checkpoint per epoch",
    )  # fmt: skip
    keep: int = option(3, "Number of newest checkpoints to keep.", group=Group.RECOVERY, low=1, metavar="N")
    use_gpu: bool = option(False, "Reserve one GPU for each train worker.", group=Group.RESOURCES)
    max_failures: int = option(
        3, "Restarts of the workers before the run fails; -1 for no limit.", group=Group.RECOVERY, low=-1, metavar="N"
    )

    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) train workers. Raises InputError unless `--num-workers` is N or MIN:MAX."""
        parts = str(self.num_workers).split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise InputError(f"--num-workers must be N or MIN:MAX, not {self.num_workers!r}")
        fewest, most = int(parts[0]), int(parts[-1])
        if not 1 <= fewest <= most:
            raise InputError(f"--num-workers needs 1 <= MIN <= MAX, not {self.num_workers!r}")
        return fewest, most

    def require_shards(self, num_shards: int) -> None:
        """Raise InputError where there are fewer shards than train workers: each worker needs its own."""
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


@configuration
class Scoring(Options):
    """How images are scored."""

    num_actors: int | None = option(
        None, "Number of scoring actors, one CPU each.", group=Group.RESOURCES, low=1, metavar="N",
        unset="as many as the images and CPUs allow",
    )  # fmt: skip
    max_bad: float = option(
        0.01, "Largest share of images that may be quarantined; beyond it, the exit code is 3.", group=Group.DATA,
        low=0, high=1, metavar="SHARE",
    )  # fmt: skip


@configuration
class Run(Options):
    """Which run this is, and where its folder is."""

    storage: PathOrUri = option(
        "./storage", "Folder of all runs: a path or a URI such as s3://BUCKET/FOLDER.", group=Group.RUN,
        metavar="URI", is_path=True,
    )  # fmt: skip
    name: str = option(
        "mnist", "Name of the run's folder. The same name continues the same run.", group=Group.RUN, metavar="NAME"
    )
    fresh: bool = option(False, "Remove an existing run of this name first.", group=Group.RUN)
    tensorboard: bool = option(False, "Write each epoch for TensorBoard, into the run's folder.", group=Group.OUTPUT)

    def written_to(self) -> tuple[str, str]:
        return "--storage", f"{str(self.storage).rstrip('/')}/{self.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = self.name.replace("-", "").replace("_", "").replace(".", "")
        if not (allowed.isascii() and allowed.isalnum()) or self.name.startswith("."):
            raise InputError(f"--name must be letters, digits, '-', '_' and '.', not {self.name!r}")


@configuration
class Data(Options):
    """What is trained on."""

    data: PathOrUri = option(
        "embedded", f"Labelled images, in train/ and test/ where they are folders: {accepted_data()}.",
        group=Group.DATA, metavar="SRC", is_path=True,
    )  # fmt: skip


@configuration
class Images(Options):
    """How images are found in an input, and made those that the model takes."""

    id_column: str | None = option(
        None, "Column of the ids.", group=Group.DATA, metavar="NAME", unset="id, else the row's number"
    )
    label_column: str | None = option(
        None, "Column of the labels.", group=Group.DATA, metavar="NAME", unset="label, where it exists"
    )
    image_column: str | None = option(None, "Column of the images.", group=Group.DATA, metavar="NAME", unset="image")
    image_field: str | None = option(
        None, "Suffix of the images in archives, such as png or seg.png.", group=Group.DATA, metavar="SUFFIX",
        unset="the one without a dot",
    )  # fmt: skip
    resize: str | None = option(
        None, "Resize all images to HEIGHTxWIDTH pixels, such as 28x28.", group=Group.DATA, metavar="HxW"
    )
    gray: bool = option(False, "Convert RGB images to gray.", group=Group.DATA)
    rgb: bool = option(False, "Convert gray images to RGB.", group=Group.DATA)
    exif: str | None = option(
        None, "Whether to turn photos upright, as the camera's note says.", group=Group.DATA,
        choices=("apply", "ignore"), unset="apply",
    )  # fmt: skip
    background: str | None = option(
        None, "What transparent images are laid over: black, white or #RRGGBB.", group=Group.DATA, metavar="COLOUR",
        unset="black",
    )  # fmt: skip

    def size(self) -> tuple[int, int] | None:
        """(height, width) of `--resize`. Raises InputError unless it is HxW."""
        if self.resize is None:
            return None
        parts = self.resize.lower().split("x")
        if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
            raise InputError(f"--resize must be HxW in pixels of at most 4096, such as 28x28, not {self.resize!r}")
        return int(parts[0]), int(parts[1])

    def background_rgb(self) -> tuple[int, int, int]:
        """(red, green, blue) of `--background`. Raises InputError unless it is a colour."""
        text = {None: "#000000", "black": "#000000", "white": "#ffffff"}.get(self.background, str(self.background))
        if not re.fullmatch("#[0-9a-fA-F]{6}", text):
            raise InputError(f"--background must be black, white or a colour such as #ff8000, not {self.background!r}")
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size()
        self.background_rgb()
        if self.gray and self.rgb:
            raise InputError("--gray and --rgb exclude each other; give the one that the model takes")


# Fields of the last base class come first; so do its options in each group of --help.


@configuration
class RunConfig(Talk, Tracking, Cluster, Scoring, Training, Sharding, Run, Images, Data):
    """`mnist-ray run`: the whole job."""


@configuration
class ShardConfig(Talk, Cluster, Sharding, Images):
    """`mnist-ray shard SRC DEST`: images → Parquet shards."""

    source: PathOrUri = argument(f"Labelled images: {accepted_data()}.", metavar="SRC", kw_only=False, is_path=True)
    destination: PathOrUri = argument("Path or URI of the folder to make.", metavar="DEST", kw_only=False, is_path=True)

    def written_to(self) -> tuple[str, str]:
        return "DEST", str(self.destination)


@configuration
class TrainConfig(Talk, Tracking, Cluster, Training, Run):
    """`mnist-ray train SHARDS`: a run's folder, up to the model."""

    shards: PathOrUri = argument("Folder that `mnist-ray shard` wrote.", metavar="SHARDS", kw_only=False, is_path=True)


@configuration
class ScoreConfig(Talk, Tracking, Cluster, Scoring, Images):
    """`mnist-ray score INPUT`: predictions for any number of images."""

    input: PathOrUri | Sequence[PathOrUri] = argument(
        f"Images: {accepted_data()}; also single images, quoted globs, lists of paths (.txt, .csv, .tsv, .jsonl).",
        metavar="INPUT...", kw_only=False, is_path=True,
    )  # fmt: skip
    model: PathOrUri = required("A run's folder, or a .keras or .h5 file.", metavar="MODEL", is_path=True)
    output: PathOrUri = required("Path or URI of the folder to write.", metavar="URI", is_path=True)
    split: str = option(
        "test", "Split to score, where the input has splits.", group=Group.DATA, choices=("train", "test")
    )
    labels: str = option(
        "auto", "Where labels come from; auto takes folders as labels only where they are the model's classes.",
        group=Group.DATA, choices=("auto", "folders", "column", "none"),
    )  # fmt: skip
    limit: int | None = option(None, "Score only the first N images.", group=Group.DATA, low=1, metavar="N")
    architecture: str | None = option(
        None, "What the run's model was trained with, if it is a function of yours that must be called to build it.",
        group=Group.MODEL, metavar="MODULE:FUNCTION", unset="mlp, cnn, or the layers in the model's file",
    )  # fmt: skip
    pixels: str | None = option(
        None, "Range of pixel values that the model takes.", group=Group.MODEL, choices=("0-255", "0-1", "-1-1"),
        unset="from the model's first layers, else from labelled images",
    )  # fmt: skip
    output_name: str | None = option(
        None, "Output to take of a model with several.", group=Group.MODEL, metavar="NAME", unset="the only one"
    )
    output_layer: str | None = option(
        None, "Write the output of this layer as an embedding, one vector an image, in place of classes.",
        group=Group.MODEL, metavar="NAME",
    )  # fmt: skip
    kind: str | None = option(
        None, "What the model's outputs are: scores of one class of several, or of any number of labels.",
        group=Group.MODEL, choices=("classes", "labels"), unset="from its last layer and the loss of its training",
    )  # fmt: skip
    classes: PathOrUri | None = option(
        None, "File of the names of the model's classes, in order: one a line, or a JSON list.", group=Group.MODEL,
        metavar="FILE", is_path=True, unset="those of a run, else numbers",
    )  # fmt: skip
    precision: str | None = option(
        None, "Number format to compute in.", group=Group.MODEL, choices=("float64", "float32", "bfloat16"),
        unset="the one it was trained in",
    )  # fmt: skip
    engine: str = option(
        "auto", "What computes the model; auto takes OpenVINO where it gives what Keras gives, else TensorFlow.",
        group=Group.MODEL, choices=("auto", "openvino", "tensorflow"),
    )  # fmt: skip
    jit: str = option(
        "auto", "Compile the model with TensorFlow's XLA; auto measures both ways, if TensorFlow computes it.",
        group=Group.MODEL, choices=("auto", "on", "off"),
    )  # fmt: skip
    batch_size: int | None = option(
        None, "Images that the model computes at once.", group=Group.MODEL, low=1, metavar="N", unset="measured"
    )
    top_k: int | None = option(
        None, "Keep the N most probable classes of each image instead of all probabilities.", group=Group.OUTPUT,
        low=1, metavar="N",
    )  # fmt: skip
    threshold: str | float | None = option(
        None, "Score from which on an image is given a label, for models that give labels: one, or one a label.",
        group=Group.OUTPUT, metavar="SCORE[,SCORE...]", unset="0.5",
    )  # fmt: skip
    retry_quarantined: bool = option(
        False, "Score the quarantined images of a finished output again, after you have repaired them.",
        group=Group.OUTPUT,
    )  # fmt: skip
    overwrite: bool = option(
        False, "Replace the output of another job, once the new output is complete.", group=Group.OUTPUT
    )

    def written_to(self) -> tuple[str, str]:
        return "--output", str(self.output)

    def inputs(self) -> tuple[str, ...]:
        """Of INPUT."""
        return tuple(map(str, [self.input] if isinstance(self.input, str | os.PathLike) else self.input))

    def thresholds(self) -> tuple[float, ...] | None:
        """Of `--threshold`. Raises InputError unless they are numbers from 0 to 1."""
        if self.threshold is None:
            return None
        try:
            found = tuple(map(float, str(self.threshold).split(",")))
        except ValueError:
            found = ()
        if not found or not all(0 <= each <= 1 for each in found):
            raise InputError(
                f"--threshold must be a number from 0 to 1, or one for each label separated by commas, not"
                f" {self.threshold!r}"
            )
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        self.thresholds()
        if self.output_layer is not None:
            for name in ("output_name", "kind", "classes", "threshold", "top_k"):
                if getattr(self, name) is not None:
                    raise InputError(f"--output-layer writes embeddings, which have no classes; leave out {flag(name)}")
        if self.overwrite and self.retry_quarantined:
            raise InputError(
                "--overwrite and --retry-quarantined exclude each other: one replaces the output, the other repairs it"
            )

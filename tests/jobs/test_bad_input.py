"""Everything that users can get wrong, and the world under them: one line, the right exit code, nothing half-written.

What ends before Ray is needed runs in this process; the rest in a process of its own, as a stranger starts it.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mnist_ray import cli
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.command import BIN, ROOT, environment, free_port, left_running, metrics_of, mnist_ray, stop

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """A command that must fail: (exit code, its one line on stderr)."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str | Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert out == ""
        return int(ended.value.code or 0), one_line(err)

    return run


def one_line(err: str) -> str:
    assert err.startswith("mnist-ray: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n"), err
    return err.strip()


# Data. Each maker is given a folder, and gives what `--data` is then told.


def idx_with(file: str, damage: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        whole = make.write_idx(folder / "idx") / file
        whole.write_bytes(damage(whole.read_bytes()))
        return whole.parent

    return made


def npz_with(**arrays: object) -> Callable[[Path], Path]:
    return lambda folder: make.write_npz(folder / "data.npz", **arrays)  # type: ignore[arg-type]


def file_of(content: bytes, name: str = "file") -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return made


def cut_npz(folder: Path) -> Path:
    file = make.write_npz(folder / "cut.npz")
    file.write_bytes(file.read_bytes()[:-30])
    return file


def cut_parquet(folder: Path) -> Path:
    file = make.write_parquet(folder / "cut.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    return file


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


DATA = {
    "missing": (lambda folder: folder / "nowhere", "nowhere does not exist; --data takes embedded (MNIST itself), "),
    "misspelt": (lambda folder: "embeded", "embeded does not exist; --data takes embedded (MNIST itself), "),
    "empty name": (lambda folder: "", "an empty path"),
    "unknown Keras dataset": (lambda folder: "keras:imagenet", "there are keras:mnist, keras:fashion_mnist"),
    "unknown scheme": (lambda folder: "http://127.0.0.1/mnist", "cannot open 'http://127.0.0.1/mnist'"),
    "too long a name": (lambda folder: folder / ("x" * 300), "File name too long"),
    "not UTF-8": (lambda folder: "a\udcff", "is not UTF-8; rename it"),
    "below a file": (lambda folder: file_of(b"x")(folder) / "deeper", "does not exist"),
    "a device": (lambda folder: "/dev/null", "/dev/null "),
    "an empty file": (file_of(b""), "is empty"),
    "an empty folder": (empty_folder, "holds no images that mnist-ray can read"),
    "some other file": (file_of(b"%PDF-1.7 ..."), "is not a file that mnist-ray reads"),
    "truncated gzip": (idx_with(IMAGES, lambda data: data[:-9]), f"{IMAGES} is truncated or damaged"),
    "damaged gzip": (idx_with(IMAGES, lambda data: data[:-8] + bytes(4) + data[-4:]), "CRC check failed"),
    "not gzip at all": (idx_with(IMAGES, lambda data: b"hello"), "it begins with 68656c6c, not 00000803"),
    "an empty IDX file": (idx_with(LABELS, lambda data: b""), f"{LABELS} is empty"),
    "wrong magic": (
        idx_with(IMAGES, lambda data: gzip.compress(b"\0\0\x09\x03" + gzip.decompress(data)[4:])),
        "it begins with 00000903, not 00000803",
    ),
    "fewer bytes than the header says": (
        idx_with(IMAGES, lambda data: gzip.compress(gzip.decompress(data)[:-3])),
        "its header promises 112 bytes of images, and 109 follow",
    ),
    "fewer labels than images": (
        idx_with(LABELS, lambda data: gzip.compress(make.idx_bytes(make.labels(6)))),
        "7 train images but 6 labels",
    ),
    "two sizes": (
        idx_with("t10k-images-idx3-ubyte.gz", lambda _: gzip.compress(make.idx_bytes(make.images(5, (5, 5))))),
        "images must have one size, but train and test have (4, 4) and (5, 5)",
    ),
    "a cut .npz": (cut_npz, "cut.npz is truncated or damaged"),
    "an .npz without labels": (npz_with(y_test=None), "has no array y_test"),
    "an .npz of objects": (npz_with(x_test=np.array([None] * 5)), "x_test is not a plain array"),
    "an .npz with two counts": (npz_with(y_train=make.labels(6)), "7 train images but 6 labels"),
    "an .npz with two sizes": (npz_with(x_test=make.images(5, (5, 4))), "(4, 4) and (5, 4)"),
    "no images at all": (npz_with(x_train=make.images(0), y_train=make.labels(0)), "holds no train images"),
    "a cut Parquet file": (cut_parquet, "cut.parquet is not a Parquet file or is damaged"),
    "Parquet without splits": (lambda folder: make.write_parquet(folder / "all.parquet"), "has no train and no test"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_read(case: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    maker, message = DATA[case]
    code, line = call("run", "--data", maker(tmp_path), "--storage", tmp_path / "storage")  # type: ignore[no-untyped-call]
    assert code == 2, line
    assert message in line
    assert not (tmp_path / "storage").exists()


def test_a_damaged_package(tmp_path: Path) -> None:
    """The embedded files are compared with their checksums: a copy of the package, one pixel off."""
    package = shutil.copytree(ROOT / "mnist_ray", tmp_path / "mnist_ray", ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "data" / IMAGES
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[-1] ^= 1
    command = [sys.executable, "-m", "mnist_ray.cli", "run", "--storage", str(tmp_path / "storage")]
    for content, told in (
        (gzip.compress(bytes(raw), 1), "is damaged: its MD5 is not "),
        (b"", "is empty"),
        (None, "is missing"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        done = subprocess.run(
            command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{file} {told}" in one_line(done.stderr)
        assert "install mnist-ray again" in done.stderr or told == "is empty"
        assert not (tmp_path / "storage").exists()


# Options.


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (b"epochs = 2.5", "epochs must be of type integer, not 2.5"),
        (b"epochs = true", "epochs must be of type integer, not True"),
        (b"seed = [1, 2]", "seed must be of type integer, not [1, 2]"),
        (b"fresh = 'yes'", "fresh must be of type boolean, not 'yes'"),
        (b"name = 2026-01-01", "name must be of type text"),
        (b"[run.epochs]\nx = 1", "epochs must be of type integer, not {'x': 1}"),
        (b'name = "a\\u0000b"', "--name must be letters"),
        (b'data = "a\\u0000b"', "is not UTF-8; rename it"),
        (b"\xff", "is not TOML"),
        (b"epochs = 0", "--epochs must be at least 1, not 0"),
        (b"precision = 'float16'", "'float16' is not one of"),
        (b"", "nowhere does not exist"),
        (b"num-workers = 2\nlearning_rate = 1", "nowhere does not exist"),
    ],
)
def test_a_config_file_with_a_mistake(
    toml: bytes, message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_bytes(toml)
    data = () if b"data" in toml else ("--data", tmp_path / "nowhere")
    code, line = call("run", "--config", tmp_path / "run.toml", "--storage", tmp_path / "storage", *data)
    assert code == 2
    assert message in line


@pytest.mark.parametrize("path", ["none.toml", "."])
def test_a_config_file_that_is_none(path: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, line = call("run", "--config", tmp_path / path)
    assert code == 2
    assert f"cannot read --config {tmp_path / path}: " in line


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/abs", "a b", "ä", "x\n", "-" * 3, "$(reboot)"])
def test_names_that_could_mean_something_else(name: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, line = call("run", f"--name={name}", "--storage", tmp_path)
    assert code == 2
    assert "--name must be letters, digits, '-', '_' and '.', not " in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-workers", "4096"], "4096 train workers x 1 CPU = 4096 CPUs are needed, but this machine has "),
        (["--num-workers", "4096"], "which lets two share a core (see docs/runs.md#workers-and-cpus)"),
        (["--cpus-per-worker", "4096"], "2 train workers x 4096 CPU = 8192 CPUs are needed"),
        (["--num-workers", "3", "--num-shards", "2", "--cpus-per-worker", "0.1"],
         "3 train workers need at least as many shards, but there are 2; use fewer --num-workers or more --num-shards"),
        (["--num-workers", "1:3", "--num-shards", "2"], "3 train workers need at least as many shards"),
    ],
)  # fmt: skip
def test_workers_that_do_not_fit_are_refused_before_anything_is_made(
    options: list[str], message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path / "storage", *options)
    assert code == 2
    assert message in line
    assert not (tmp_path / "storage").exists()


# Places.


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/mnist-ray", "/proc/self/fd", "x" * 300])
def test_a_storage_that_cannot_be(place: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path / place)
    assert code == 2
    assert str(tmp_path / place) in line
    assert line.endswith("(see docs/storage.md)")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "idx"]


def test_a_name_that_is_somebody_elses_folder(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "thesis.tex").write_text("three years")
    for options in ([], ["--fresh"]):
        code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path, *options)
        assert code == 2
        assert "so it is not a run's folder; use another --name (see docs/runs.md)" in line
    assert [each.name for each in (tmp_path / "mnist").iterdir()] == ["thesis.tex"]


def test_other_commands_given_what_is_not_theirs(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    make.write_idx(tmp_path / "idx")
    for command in (
        ("status", tmp_path / "none"),
        ("status", tmp_path),
        ("report", tmp_path / "none"),
        ("report", tmp_path),
        ("verify", tmp_path / "none"),
        ("verify", tmp_path),
        ("train", tmp_path, "--storage", tmp_path / "made"),
        ("score", tmp_path / "idx", "--model", tmp_path / "none", "--output", tmp_path / "made"),
        ("score", tmp_path / "none", "--model", tmp_path, "--output", tmp_path / "made"),
        ("shard", tmp_path / "none", tmp_path / "made"),
    ):
        code, line = call(*command)
        assert code == 2, (command, line)
        assert str(tmp_path) in line
        assert [each.name for each in tmp_path.iterdir()] == ["idx"], command


# Addresses.


@contextlib.contextmanager
def listening(answer: bytes | None = None, *, accept: bool = True) -> Iterator[int]:
    """A port where something listens that is not Ray: it answers with `answer`, says nothing, or drops all."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0 if not accept else 100) as server,
        contextlib.ExitStack() as kept,
    ):
        port = server.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    kept.enter_context(client)
                    if answer is not None:
                        client.recv(4096)
                        client.sendall(answer)
                        client.close()

        if accept:
            threading.Thread(target=serve, daemon=True).start()
        else:
            for _ in range(3):  # they fill the queue; who comes next waits for ever
                client = kept.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
        yield port
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("127.0.0.1:1", 1, "nothing listens at 127.0.0.1:1 "),
        ("ray://127.0.0.1:1", 1, "nothing listens at 127.0.0.1:1 "),
        ("[::1]:1", 1, "nothing listens at [::1]:1 "),
        ("127.0.0.1", 2, "--address must be auto, HOST:PORT or ray://HOST:PORT, not '127.0.0.1'"),
        ("127.0.0.1:99999", 2, "--address must be auto, HOST:PORT"),
        ("http://127.0.0.1:8265", 2, "--address must be auto, HOST:PORT"),
        (":6379", 2, "--address must be auto, HOST:PORT"),
        ("atuo", 2, "--address must be auto, HOST:PORT"),
    ],
)
def test_an_address_that_is_none(
    address: str, code: int, message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    data = make.write_idx(tmp_path / "idx")
    for command in (
        ("run", "--data", data, "--storage", tmp_path / "made"),
        ("shard", data, tmp_path / "made"),
    ):
        began = time.monotonic()
        found, line = call(*command, "--address", address)
        assert time.monotonic() - began < 6
        assert found == code
        assert message in line
        assert line.endswith("(see docs/clusters.md#ways-to-start)")
        assert not (tmp_path / "made").exists()


def test_a_host_that_drops_what_it_is_sent(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    data = make.write_idx(tmp_path / "idx")
    with listening(accept=False) as port:
        began = time.monotonic()
        code, line = call("run", "--data", data, "--storage", tmp_path / "made", "--address", f"127.0.0.1:{port}")
        assert 2.5 < time.monotonic() - began < 6
    assert code == 1
    assert f"nothing listens at 127.0.0.1:{port} (timed out)" in line
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"])
def test_a_port_of_some_other_program(answer: bytes | None, tmp_path: Path) -> None:
    data, env = make.write_idx(tmp_path / "idx"), environment(tmp_path)
    with listening(answer) as port:
        address = f"127.0.0.1:{port}"
        began = time.monotonic()
        done = mnist_ray("run", "--data", data, "--storage", tmp_path / "made", "--address", address, env=env)
        assert time.monotonic() - began < 30  # 3 s of waiting, and imports
        assert done.returncode == 1
        assert f"what listens at {address} is not a Ray head" in one_line(done.stderr)
        began = time.monotonic()
        done = mnist_ray("submit", "--address", f"http://{address}", "--", "run", env=env)
        assert time.monotonic() - began < 30
        assert done.returncode == 1, done.stderr
        assert "Ray dashboard" in one_line(done.stderr) or "Ray's dashboard" in done.stderr


# With real processes. One run is disturbed in every phase, and ends as one that never was.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bad")
    source = open_source("embedded")
    train, test = source.read("train", 0, 2000), source.read("test", 0, 500)
    np.savez(made / "small.npz", x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    return made


def command(folder: Path, name: str) -> list[str]:
    return ["run", "--data", str(folder / "small.npz"), "--storage", str(folder), "--name", name, "--epochs", "2"]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Path, str]:
    """A run on a terminal, while other programs have Ray's usual ports. Its folder, and what the terminal showed."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with contextlib.ExitStack() as taken:
        for port in (6379, 8265, 10001):
            with contextlib.suppress(OSError):  # somebody has it, which does as well
                taken.enter_context(socket.create_server(("", port)))
        done = subprocess.run(
            [str(BIN / "mnist-ray"), *command(folder, "undisturbed")], env=environment(folder, TERM="xterm"), cwd=ROOT,
            stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=200, check=False,
        )  # fmt: skip
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "undisturbed", b"".join(shown).decode()


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_terminal_bars_move(undisturbed: tuple[Path, str]) -> None:
    _, shown = undisturbed
    assert "\x1b[" in shown
    assert "epoch 2/2" in shown
    assert "━" in shown


@pytest.mark.ray
def test_nobody_reads_what_is_said(undisturbed: tuple[Path, str], folder: Path) -> None:
    """`mnist-ray run | head -1`, and a full disk where the log goes."""
    for args in (command(folder, "undisturbed"), command(folder, "unheard")):
        ours, theirs = os.pipe()
        os.close(ours)
        for out, told in ((theirs, "Broken pipe"), (os.open("/dev/full", os.O_WRONLY), "No space left on device")):
            done = subprocess.run(
                [str(BIN / "mnist-ray"), *args], env=environment(folder), cwd=ROOT, stdout=out, stderr=subprocess.PIPE,
                text=True, timeout=60, check=False,
            )  # fmt: skip
            os.close(out)
            assert done.returncode == 1
            assert told in one_line(done.stderr)


@pytest.mark.ray
def test_verify_tells_a_difference(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed[0], tmp_path / "run")
    assert mnist_ray("verify", run, env=environment(tmp_path)).returncode == 0
    part = next((run / "predictions").glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    done = mnist_ray("verify", run, env=environment(tmp_path))
    assert done.returncode == 1
    assert part.name in one_line(done.stderr)
    part.unlink()
    done = mnist_ray("verify", run, env=environment(tmp_path))
    assert done.returncode == 1
    assert part.name in one_line(done.stderr)


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_run_interrupted_in_every_phase_ends_as_one_that_was_not(undisturbed: tuple[Path, str], folder: Path) -> None:
    run = folder / "interrupted"
    phases: list[tuple[signal.Signals, Callable[[], bool]]] = [
        (signal.SIGTERM, lambda: (run / "progress.json").exists()),
        (signal.SIGINT, lambda: any(run.glob("shards/train/*.parquet"))),
        (signal.SIGTERM, lambda: (run / "shards" / "dataset.json").exists()),
        (signal.SIGINT, lambda: any(run.glob("checkpoints/*.npz"))),
        (signal.SIGTERM, lambda: (run / "model" / "model.json").exists()),
    ]
    for kind, reached in phases:
        env = environment(folder)
        driver = subprocess.Popen(
            [str(BIN / "mnist-ray"), *command(folder, run.name)], env=env, cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not reached():
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        # A terminal sends Ctrl-C to all that run in it, a scheduler its SIGTERM to one process.
        os.killpg(driver.pid, kind) if kind is signal.SIGINT else driver.send_signal(kind)
        out, err = driver.communicate(timeout=60)
        assert time.monotonic() - began < 20
        assert driver.returncode == 130, (out, err)
        assert one_line(err) == "mnist-ray: interrupted; the same command continues from what is committed"
        assert "\x1b" not in out
        assert "\r" not in out
        deadline = time.monotonic() + 10
        while left := left_running(env):  # orphans that are on their way out
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert not (run / "metrics.json").exists()
        assert not (run / "failure.json").exists()
        assert "its driver has ended; run it again to continue" in mnist_ray("status", run, env=env).stdout
    done = mnist_ray(*command(folder, run.name), env=environment(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert metrics_of(run)["after"] == metrics_of(undisturbed[0])["after"]
    assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """`ray start --head` without a token: its address, and an environment."""
    env = environment(folder, RAY_AUTH_MODE="disabled", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="1")
    port, client = free_port(), free_port()
    head = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--include-dashboard=false",
         "--ray-client-server-port", str(client), "--object-store-memory=100000000"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert head.poll() is None, head.stdout and head.stdout.read()
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", env
    finally:
        stop(head)


def nan_npz(folder: Path) -> tuple[Path, str]:
    pixels = np.zeros((7, 4, 4))
    pixels[3, 2, 1], pixels[4] = np.nan, -np.inf
    return make.write_npz(folder / "nan.npz", x_train=pixels), "train row 3 has a pixel nan"


def nan_parquet(folder: Path) -> tuple[Path, str]:
    for split in ("train", "test"):
        rows = [[float("nan") if (split, row) == ("test", 2) else 1.0] * 16 for row in range(7)]
        make.write_parquet(folder / "parquet" / split / "a.parquet", image=pa.array(rows))
    return folder / "parquet", "test row 2"


def no_image(folder: Path) -> tuple[Path, str]:
    made = make.write_folders(folder / "folders")
    (made / "train" / "class-1" / "notes.txt").write_text("not an image")
    return made, "notes.txt"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("maker", [nan_npz, nan_parquet, no_image])
def test_rows_that_are_found_bad_while_sharding(
    maker: Callable[[Path], tuple[Path, str]], cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, env = cluster
    data, told = maker(tmp_path)
    args = ("run", "--data", data, "--storage", tmp_path, "--num-shards", "2", "--address", address)
    done = mnist_ray(*args, env=env)
    assert done.returncode == 2
    assert told in one_line(done.stderr)
    assert not (tmp_path / "mnist" / "shards" / "dataset.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert "failed for good (exit code 2)" in mnist_ray("status", tmp_path / "mnist", env=env).stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "at"),
    [(300, "shards"), pytest.param(1500, "checkpoints", marks=pytest.mark.drill)],
)
def test_a_storage_that_fills_up(
    kilobytes: int, at: str, cluster: tuple[str, dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    address, env = cluster
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        args = [*command(folder, "full"), "--storage", str(disk), "--address", address, "--max-failures", "0"]
        done = mnist_ray(*args, env=env)
        assert done.returncode == 1, done.stderr
        assert f"no space left to write {disk}/full/{at}" in one_line(done.stderr)
        assert not list((disk / "full").rglob("*.tmp"))
        assert not (disk / "full" / "metrics.json").exists()
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        if at == "checkpoints":
            done = mnist_ray(*args, env=env)
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.ray
def test_a_cluster_that_is_too_small_or_wants_a_token(cluster: tuple[str, dict[str, str]], folder: Path) -> None:
    address, env = cluster
    done = mnist_ray(*command(folder, "wide"), "--num-workers", "5", "--address", address, env=env)
    assert done.returncode == 1
    told = "5 train workers x 1 CPU = 5 CPUs are needed, but the cluster has 2; use fewer --num-workers"
    assert told in one_line(done.stderr)
    assert "--wait-for-resources SECONDS" in done.stderr


# What is submitted.


@pytest.mark.parametrize("job", ["run", "shard", "train", "score"])
def test_jobs_are_the_commands(job: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    args = {
        "run": ["--data", missing],
        "shard": [missing, str(tmp_path / "made")],
        "train": [missing],
        "score": [missing, "--model", missing, "--output", str(tmp_path / "made")],
    }[job]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *args], env=environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert missing in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []

"""Outputs in an object store: uploads ended, and one output replaced by another."""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from typing import Any

import pytest

from mnist_ray.predictions import parts
from mnist_ray.predictions import replace as replacement
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.storage import s3
from mnist_ray.storage.disk import ChangedMeanwhileError
from mnist_ray.storage.location import Location
from mnist_ray.storage.s3 import S3
from tests.support.output_maker import make_output, retry, rows_of
from tests.support.s3_server import BUCKET, ROOT, begin, begun

pytestmark = pytest.mark.usefixtures("here")


# Uploads of several parts that nobody completed.


def test_going_on_and_finishing_end_the_uploads_of_an_output_and_no_others(client: Any) -> None:
    make_output(f"{ROOT}/swept/out")
    output = Location.parse(f"{ROOT}/swept/out")
    ours = ("out/part-00001.parquet", "out/quarantine/part-00001.parquet", "out/_plan.json", "out/_files.arrow")
    others = {"out/film.mov", "out/more/part-00001.parquet", "out2/part-00001.parquet", "part-00001.parquet"}
    begin(client, *(f"swept/{key}" for key in [*ours, ours[0], *others]))
    assert begun(client, "swept/") == {*ours, *others}
    plan = Plan.load(output)
    assert plan is not None
    done = list(parts.resume(output, plan))
    assert begun(client, "swept/") == others
    begin(client, *(f"swept/{key}" for key in ours))
    parts.write_manifest(output, plan, done)
    assert begun(client, "swept/") == others
    assert verify(output).images == 18


# Uploads of an actor whose attempt has ended, or whose unit another has done, that land late.


_LATE = [
    each
    for each in itertools.product(
        ("one request", "several parts"),
        ("before another's commit", "after it", "after the manifest"),
        ("a commit", "a retry"),
    )
    if each[::2] != ("several parts", "a retry")  # moto heeds If-Match for one request alone; S3 for several parts, too
]
_QUICK = [("one request", "after it", "a retry"), ("several parts", "after the manifest", "a commit")]


@pytest.mark.parametrize(
    ("size", "lands", "kind"),
    [pytest.param(*each, marks=() if each in _QUICK else pytest.mark.drill) for each in _LATE],
)
def test_an_upload_that_lands_late_changes_nothing(
    size: str, lands: str, kind: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor has begun to send its part. Nothing ends that request: not its attempt's end, not another's commit."""
    prefix = re.sub(r"\W+", "-", f"late {size} {lands} {kind}")
    made = make_output(f"{ROOT}/{prefix}", bad=(7, 8))
    output = Location.parse(f"{ROOT}/{prefix}")
    for name in ("_manifest.json", "metrics.json", *(["part-00001.parquet"] if kind == "a commit" else [])):
        (output / name).delete()
    plan = Plan.load(output)
    assert plan is not None
    if size == "several parts":
        monkeypatch.setattr(s3, "_MOST_AT_ONCE", 1000)

    def commit(found: parts.Committed | None, mended: tuple[int, ...]) -> parts.Committed:
        if found is None:
            return parts.commit(output, plan, 1, rows_of(tuple({7, 8} - set(mended)), len(mended)))
        return retry(output, plan, made, found, mended)

    done = list(parts.resume(output, plan))
    found = done[1] if kind == "a retry" else None
    late = sent_late(monkeypatch, lambda: commit(found, (7,)))
    if lands == "before another's commit":
        late()
    done = list(parts.resume(output, plan))  # the next driver
    mine = commit(done[1] if kind == "a retry" else None, (7, 8))
    if lands == "after it":
        late()
    done = list(parts.resume(output, plan))
    assert done[1].part == mine.part
    parts.write_manifest(output, plan, done)
    if lands == "after the manifest":
        late()
    assert verify(output).quarantined == int((lands, kind) == ("before another's commit", "a commit"))
    assert not begun(client, prefix)


def sent_late(monkeypatch: pytest.MonkeyPatch, work: Any) -> Any:
    """Do the work up to where its part is complete at the store but for the last request. Returns that request."""
    requests = []

    def hold_back(self: S3, path: str, data: bytes, etag: str | None) -> str:
        if "quarantine" in path:
            return write(self, path, data, etag)
        requests.append((self, path, bytes(data), etag))
        raise CutError

    write = S3.write_if_unchanged
    with monkeypatch.context() as patch:
        patch.setattr(S3, "write_if_unchanged", hold_back)
        with pytest.raises(CutError):
            work()
    (request,) = requests

    def land() -> None:
        with suppress(ChangedMeanwhileError):
            write(*request)

    return land


# Replacing an output.


class CutError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("cut", [pytest.param(cut, marks=() if cut == 12 else pytest.mark.drill) for cut in range(14)])
def test_an_output_is_replaced_and_at_any_moment_one_is_whole(
    cut: int, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"replaced/{cut}/"
    output, job = Location.parse(f"{ROOT}/{root}out+1"), {"input_digest": "ef" * 32}  # a + that headers must escape
    make_output(str(output), input_digest="cd" * 32)
    new = replacement.target(output, job)
    assert new.name == ".out+1.new"
    make_output(str(new), **job, units=(9, 9), bad=(2,), seed=1)
    (output / "progress.json").write_json({"phase": "score"})
    begin(client, f"{root}out+1/part-00002.parquet")

    old_files, new_files = digests(client, output), digests(client, new)
    seen, steps = [], itertools.count()

    def stepping(action: Any) -> Any:
        def step(*args: Any) -> None:
            there = digests(client, output)
            seen.append("old" if there == old_files else "new" if there == new_files else "unfinished")
            assert seen[-1] == "new" or digests(client, new) == new_files
            assert seen[-1] != "unfinished" or "_manifest.json" not in there
            if next(steps) == cut:
                raise CutError
            action(*args)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(replacement, "_copy", stepping(replacement._copy))
        patch.setattr(Location, "delete", stepping(Location.delete))
        with pytest.raises(CutError):
            replacement.replace(output, new)
        assert replacement.target(output, job) == new
        replacement.replace(output, new)
    assert [*dict.fromkeys(seen)] == ["old", "unfinished", "new"]
    assert (digests(client, output), digests(client, new)) == (new_files, {})
    assert verify(output).quarantined == 1
    assert replacement.target(output, job) == output
    assert begun(client, root) == set()


def digests(client: Any, output: Location) -> dict[str, str]:
    """Of the files of an output, by one request: as they are at a moment."""
    root = f"{output.path.partition('/')[2]}/"
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=root).get("Contents", [])
    names = {each["Key"].removeprefix(root): each["ETag"] for each in listed}
    return {name: digest for name, digest in names.items() if name and not name.endswith(("/", "progress.json"))}

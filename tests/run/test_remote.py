"""Storage behind a URL: what one mirror has made another finds; what was cut short or damaged is never taken."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests import forking
from tests.run import faulty

from trimtab import verbs
from trimtab.compute import Compute, mirror_of
from trimtab.errors import JobError, ResourceError, StageError
from trimtab.progress import Noting
from trimtab.run.artifact import Artifact, Node, PlanRunner
from trimtab.run.carrying import AWAY, Carrier
from trimtab.run.found import shown
from trimtab.run.keeping import kept
from trimtab.run.local import LocalRunner, execute, here
from trimtab.run.log import EventLog
from trimtab.run.remote import adopted, check_writable, deliver, fetch, fetched, finished, look
from trimtab.run.store import store_of
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.training.world import World

FILES = {"rows.jsonl": "one\n", "model/config.json": "{}", "model/deep/weights": "w" * 5000, "empty": ""}


class Number(Spec):
    number: int = 0
    model: str = ""


@stage(version=1, on="driver")
def make(spec: Number, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    """Files in folders, and a note of who made them and of what came in."""
    for name, text in FILES.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    came = {name: (path / "by").read_text() for name, path in after.items()}
    (out / "by").write_text(f"{spec.number} in {compute.storage.parent.name} after {came}")
    return {"number": spec.number}


def chain(url: str, mirror: Path, length: int = 3, **fields: Any) -> LocalRunner:
    """Stages that each need the one before, for a node with this mirror."""
    os.environ["TRIMTAB_MIRROR"] = str(mirror)
    run = LocalRunner(Compute(storage=url, backend="inline"), **fields)
    last: dict[str, Artifact] = {}
    for number in range(length):
        last = {"a": run(make, Number(number=number), after=last)}
    look(node.artifact for node in run.nodes.values())
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def artifacts(run: PlanRunner) -> list[Artifact]:
    return [node.artifact for node in run.nodes.values()]


@pytest.fixture(autouse=True)
def _mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_MIRROR", "unset")
    monkeypatch.delenv("TRIMTAB_STORAGE", raising=False)


@pytest.fixture(params=["file", "memory", "faulty"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = tmp_path / "store"
    return f"memory://{place}" if request.param == "memory" else place.as_uri().replace("file", request.param, 1)


@pytest.fixture
def local(tmp_path: Path) -> tuple[str, Path]:
    """A store whose files a test can look at, and damage."""
    return (tmp_path / "store").as_uri().replace("file", "faulty", 1), tmp_path / "store"


def test_a_url_is_mirrored_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_MIRROR", str(tmp_path))
    one, other = Compute(storage="s3://bucket/one/"), Compute(storage="s3://bucket/other")
    assert (one.remote, one.storage) == ("s3://bucket/one", mirror_of("s3://bucket/one"))
    assert one.storage.parent == other.storage.parent == tmp_path
    assert one.storage != other.storage
    assert Compute.model_validate(one.model_dump()) == one
    assert (Compute(storage="folder").remote, Compute().storage) == (None, Path(".trimtab"))
    monkeypatch.setenv("TRIMTAB_STORAGE", "s3://bucket/one")
    assert Compute() == one
    for remote in ("s3://bucket/one", 5):
        with pytest.raises(ValueError, match="give the URL as compute.storage"):
            Compute(storage="folder", remote=remote)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:SECRET@bucket/x", "may not hold a password"),
        ("s3://key:SE/CRET@bucket/x", "may not hold a password"),
        ("https://host/x?token=SECRET", "may not hold a password"),
        ("s3://", "folder or a URL"),
        ("s3://bucket/[x]", "folder or a URL"),
        ("s4://bucket/x", "unknown kind of storage s4://"),
        ("oci://bucket/x", "needs the package ocifs: pip install ocifs"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_mistake_in_the_job(url: str, said: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"kind: weak_to_strong\ncompute: {{backend: inline, storage: '{url}'}}\n")
    for overrides in ([], [f"compute.storage={url!r}"]):
        with pytest.raises(JobError, match="is missing") as raised:
            verbs.check(job, overrides)
        assert said in str(raised.value)
        assert "key:SE" not in str(raised.value)
    assert not list(tmp_path.glob("*:*"))


def test_a_second_mirror_finds_all_that_the_first_has_made(url: str, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    first = chain(url, tmp_path / "a")
    assert len(first.pending) == 3
    first.wait()
    second = chain(url, tmp_path / "b", sink=events.append)
    assert second.pending == []
    assert [one.metrics() for one in artifacts(second)] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert not second.compute.artifacts.exists(), "nothing is fetched before it is needed"
    for made, found in zip(artifacts(first), artifacts(second), strict=True):
        assert content(fetched(found)) == content(made.folder)
        assert found.record() == made.record()
    longer = chain(url, tmp_path / "c", length=4, sink=events.append)
    assert [node.spec.number for node in longer.pending] == [3]
    longer.wait()
    *_, before, last = artifacts(longer)
    assert (last.path / "by").read_text() == f"3 in c after {{'a': {(before.path / 'by').read_text()!r}}}"
    assert not artifacts(longer)[0].here, "only what a stage needs is fetched"


def test_a_folder_knows_nothing_of_remotes(tmp_path: Path) -> None:
    run = chain(str(tmp_path / "folder"), tmp_path / "mirror")
    run.wait()
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["artifacts", "leases"]
    assert not (tmp_path / "mirror").exists()
    assert sorted(content(artifacts(run)[0].folder)) == sorted([*FILES, "by", "metrics.json", "stage.json"])


def test_what_is_not_marked_whole_is_made_again(local: tuple[str, Path], tmp_path: Path) -> None:
    url, store = local
    chain(url, tmp_path / "a").wait()
    marks = sorted(store.glob("artifacts/*/whole.json"))
    marks[0].unlink()
    marks[1].write_text(marks[1].read_text()[:40])
    again = chain(url, tmp_path / "b")
    gone = {mark.parent.name for mark in marks[:2]}
    assert {one.id for one in artifacts(again) if not one.ready} == gone
    events: list[dict[str, Any]] = []
    again.sink = events.append
    again.ends = artifacts(again)
    again.wait()
    assert {event["stage_id"] for event in events if event["event"] == "stage_start"} == gone
    assert chain(url, tmp_path / "c").pending == []
    for one in artifacts(again):
        assert content(fetched(one)).keys() >= FILES.keys()


@pytest.mark.chaos
@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "files"])
def test_what_is_damaged_is_not_taken(local: tuple[str, Path], tmp_path: Path, damage: str) -> None:
    url, store = local
    chain(url, tmp_path / "a", length=1).wait()
    weights = next(store.glob("artifacts/*/*/model/deep/weights"))
    if damage == "changed":
        weights.write_text("x" * 5000)
    elif damage == "shorter":
        weights.write_text("w" * 4999)
    elif damage == "missing":
        weights.unlink()
    else:
        next(store.glob("artifacts/*/*/files.json")).unlink()
    run = chain(url, tmp_path / "b", length=2)
    found = artifacts(run)[0]
    with pytest.raises(ResourceError, match=r"weights|files\.json|Not ?Found"):
        run.wait()
    assert not found.folder.exists()
    assert not list(found.root.glob(f".{found.id}*"))


def _dies(url: str, mirror: Path, writes: int) -> None:
    os.environ[faulty.WRITES] = str(writes)
    chain(url, mirror, length=1).wait()


@pytest.mark.parametrize("name", ["../../../evil", "/tmp/evil", "model/../../evil"])
def test_names_in_a_store_lead_nowhere_else(local: tuple[str, Path], tmp_path: Path, name: str) -> None:
    url, store = local
    chain(url, tmp_path / "a", length=1).wait()
    files = next(store.glob("artifacts/*/*/files.json"))
    files.write_text(json.dumps(json.loads(files.read_text()) | {name: {"bytes": 0, "sha256": ""}}))
    (found,) = artifacts(chain(url, tmp_path / "b", length=1))
    with pytest.raises(ResourceError, match="evil' is no name of a file that trimtab wrote"):
        fetched(found)
    assert not found.folder.exists()


@pytest.mark.chaos
def test_whoever_is_killed_while_pushing_leaves_nothing_that_is_seen(local: tuple[str, Path], tmp_path: Path) -> None:
    url, store = local
    writes = len(FILES) + 3  # who made them, their names, the mark
    for number in range(writes):
        process = forking.start(_dies, url, tmp_path / f"dead{number}", number)
        process.join(400)
        assert process.exitcode == 9
        assert len(list(store.glob("artifacts/*/*/*"))) >= min(number, 1)
        assert len(chain(url, tmp_path / f"look{number}", length=1).pending) == 1
    run = chain(url, tmp_path / "dead0", length=1)
    run.wait()
    there = fetched(artifacts(chain(url, tmp_path / "other", length=1))[0])
    assert content(there) == content(artifacts(run)[0].folder)


def test_of_two_that_make_the_same_the_first_stands_everywhere(url: str, tmp_path: Path) -> None:
    slow, fast = chain(url, tmp_path / "slow", length=1), chain(url, tmp_path / "fast", length=1)
    (node,) = slow.nodes.values()

    def call(node: Node, out: Path) -> Metrics:
        fast.wait()
        return here(slow.compute, slow.sink)(node, out)

    execute(node, call, Noting(lambda event: None))
    (own,) = artifacts(slow)
    assert own.ready
    assert not own.here
    assert (fetched(own) / "by").read_text() == "0 in fast after {}"
    assert content(own.folder) == content(artifacts(fast)[0].folder)


@pytest.mark.chaos
def test_what_could_not_be_pushed_is_kept_and_pushed_later(local: tuple[str, Path], tmp_path: Path) -> None:
    url, store = local
    run = chain(url, tmp_path / "a", length=1)
    (node,) = run.nodes.values()

    def call(node: Node, out: Path) -> Metrics:
        made = here(run.compute, run.sink)(node, out)
        store.mkdir(exist_ok=True)
        (store / "DOWN").touch()
        return made

    with pytest.raises(StageError, match="the storage is down"):
        execute(node, call, Noting(lambda event: None))
    with pytest.raises(ResourceError, match=r"ConnectionError: the storage is down.*can be reached"):
        look([node.artifact])
    with pytest.raises(ResourceError, match="the storage is down"):
        check_writable(url)
    assert node.artifact.here
    (store / "DOWN").unlink()
    again = chain(url, tmp_path / "a", length=1)
    deliver(artifacts(again))
    other = chain(url, tmp_path / "b", length=1)
    assert content(fetched(artifacts(other)[0])) == content(node.artifact.folder)


def test_a_node_that_does_not_see_the_driver_s_folder_pushes_from_its_own(url: str, tmp_path: Path) -> None:
    run, node_s = chain(url, tmp_path / "driver", length=2), tmp_path / "node"
    one, two = run.nodes.values()
    execute(one, here(run.compute, run.sink), Noting(lambda event: None))
    there = chain(url, node_s, length=2)
    far = list(there.nodes.values())[1]
    carrier = Carrier.of(far, there.compute)

    def call(node: Node, out: Path) -> Metrics:
        away = carrier.place(far.artifact.root / out.name)  # what Ray calls on the other node
        assert away.name == out.name + AWAY
        with carrier.around(away, World(0, 1)):
            metrics = make(far.spec, away, compute=there.compute, **far.arguments())
        assert not away.exists()
        return metrics

    execute(two, call, Noting(lambda event: None))
    assert two.artifact.ready
    assert not two.artifact.here, "it is on the node and in the store"
    assert (fetched(two.artifact) / "by").read_text().startswith("1 in node after")
    near = run.compute.artifacts
    near.mkdir(exist_ok=True)
    assert Carrier.of(two, run.compute).place(near) == near


def test_a_node_that_sees_no_folder_and_has_no_url_is_told_the_way_out(tmp_path: Path) -> None:
    run = chain(str(tmp_path / "storage"), tmp_path / "unused", length=1)
    with pytest.raises(ResourceError, match="does not see .*; set compute.storage or TRIMTAB_STORAGE to a folder"):
        Carrier.of(*run.nodes.values(), run.compute).place(tmp_path / "of-the-driver")


def test_what_a_rank_said_on_another_node_before_it_failed_is_told_and_kept(url: str, tmp_path: Path) -> None:
    run = chain(url, tmp_path / "driver", length=1)
    (node,) = run.nodes.values()

    def call(node: Node, out: Path, said: str = "said on the node\n") -> Metrics:
        (out / "log.txt").write_text("said here\n")
        error = StageError("what breaks")
        error.rank, error.logs = 1, {1: said}
        raise error

    with pytest.raises(StageError, match="(?s)StageError: what breaks.*end of its log:\n    said on the node"):
        execute(node, call, Noting(lambda event: None))
    failed = node.artifact.root / f".{node.artifact.id}.failed"
    assert [path.read_text() for path in sorted(failed.iterdir())] == ["said here\n", "said on the node\n"]
    with pytest.raises(StageError, match="(?s)StageError: what breaks.*end of its log:\n    said again") as again:
        execute(node, partial(call, said="said again"), Noting(lambda event: None))
    assert "said on the node" not in str(again.value)


def test_a_model_that_a_spec_names_is_fetched_too(url: str, tmp_path: Path) -> None:
    first = chain(url, tmp_path / "a", length=1)
    first.wait()
    run = chain(url, tmp_path / "b", length=1)
    (source,) = artifacts(run)
    for model in (f"artifact:{source.id}", str(source.folder / "model")):
        node = run.nodes[run(make, Number(model=model), after={}).id]
        assert [one.id for one in Carrier.of(node, run.compute).needs] == [source.id]
    assert Carrier.of(run.nodes[source.id], run.compute).needs == ()


def test_a_registered_model_that_only_the_driver_has_is_fetched_by_others(url: str, tmp_path: Path) -> None:
    run, model = chain(url, tmp_path / "a", length=1), tmp_path / "registry" / "arm-1"
    model.mkdir(parents=True)
    (model / "weights").write_text("w" * 100)
    (source,) = artifacts(run)
    place = adopted(model, source)
    assert adopted(model, source) == adopted(place, source) == place
    assert adopted(model, replace(source, remote=None)) == model
    node = run.nodes[run(make, Number(model=str(place)), after={}).id]
    (needed,) = Carrier.of(node, run.compute).needs
    (tmp_path / "a").rename(tmp_path / "gone")
    fetch([needed])
    assert (place / "weights").read_text() == "w" * 100


def test_the_log_and_report_of_a_run_are_found_from_elsewhere(url: str, tmp_path: Path) -> None:
    run = chain(url, tmp_path / "a", length=1)
    run.wait()
    (made,) = artifacts(run)
    folder = run.compute.storage / "runs" / "r-1"
    log = EventLog(folder, kept(folder, url))
    log({"event": "run_start", "run_id": "r-1", "owner": {}})
    log({"event": "run_end", "status": "done", "metrics": {"a": 1.0}, "report": str(made.folder / "rows.jsonl")})
    log.close()
    (tmp_path / "a").rename(tmp_path / "gone")
    os.environ["TRIMTAB_MIRROR"] = str(tmp_path / "b")
    found = shown(url, None)
    assert (found.run_id, found.status, found.metrics) == ("r-1", "done", {"a": 1.0})
    assert found.report.is_relative_to(tmp_path / "b")
    assert found.report.read_text() == FILES["rows.jsonl"]
    folder = mirror_of(url) / "runs" / "r-1"
    again = EventLog(folder, kept(folder, url))
    again({"event": "run_start", "run_id": "r-1"})
    again({"event": "run_end", "status": "done"})
    again.close()
    kept_there = store_of(url).read(["runs/r-1/events.jsonl"])["runs/r-1/events.jsonl"].decode().splitlines()
    assert [json.loads(line)["event"] for line in kept_there] == ["run_start", "run_end"] * 2


def test_finishing_a_folder_s_artifact_leaves_nothing_beside_it(tmp_path: Path) -> None:
    artifact, aside = Artifact("make", "k" * 16, tmp_path / "artifacts"), tmp_path / "artifacts" / ".make-x-00000000"
    aside.mkdir(parents=True)
    finished(artifact, aside, record={"seconds": 1}, metrics={"x": 1.0})
    assert [p.name for p in tmp_path.iterdir()] == ["artifacts"]
    assert artifact.metrics() == {"x": 1.0}

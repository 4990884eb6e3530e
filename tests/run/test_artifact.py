from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.compute import Compute
from trimtab.errors import DataError, JobError, StageError
from trimtab.load import load_job
from trimtab.run.artifact import Artifact, PlanRunner, building, finish, key_of
from trimtab.run.local import LocalRunner
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage


class Number(Spec):
    value: float = 1.0
    note: str = ""


CALLS: list[str] = []


@stage(version=1, on="driver")
def make(spec: Number, out: Path, *, compute: Compute) -> Metrics:
    CALLS.append("make")
    (out / "part").mkdir()
    (out / "part" / "value").write_text(str(spec.value))
    return {"value": spec.value}


@stage(version=1, on="driver")
def add(spec: Number, out: Path, *, compute: Compute, terms: dict[str, Path], base: Path) -> Metrics:
    CALLS.append("add")
    total = spec.value + sum(float((p / "value").read_text()) for p in [base, *terms.values()])
    (out / "value").write_text(str(total))
    return {"value": total}


@stage(version=1, on="driver")
def fail(spec: Number, out: Path, *, compute: Compute, data: Path) -> Metrics:
    (out / "half").write_text("half")
    if spec.note == "data":
        raise DataError("row 3 is empty")
    raise RuntimeError("no luck")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()


def chain(run: PlanRunner, value: float = 1.0) -> Artifact:
    one = run(make, Number(value=value))
    two = run(make, Number(value=2.0))
    return run(add, Number(value=0.5), terms={"a": one / "part", "b": two / "part"}, base=one / "part")


def compute(tmp_path: Path) -> Compute:
    return Compute(storage=tmp_path, backend="inline")


def test_keys_depend_on_spec_inputs_parts_and_version() -> None:
    root = Path("artifacts")
    first, second = Artifact("make", "a", root), Artifact("make", "b", root)
    base = key_of(add, Number(), {"x": first})
    assert key_of(add, Number(), {"x": first}) == base
    others = [
        key_of(add, Number(value=2), {"x": first}),
        key_of(add, Number(), {"x": second}),
        key_of(add, Number(), {"y": first}),
        key_of(add, Number(), {"x": first / "part"}),
        key_of(make, Number(), {"x": first}),
        key_of(stage(version=2, on="driver")(lambda: {}), Number(), {"x": first}),
    ]
    assert len({base, *others}) == 7


def test_a_stage_that_resumes_is_given_a_folder_of_its_own(tmp_path: Path) -> None:
    resuming = stage(version=1, on="driver", resumes=True)(lambda: {})
    plan = PlanRunner(compute(tmp_path))
    artifact, plain = plan(resuming, Number(), base=Artifact("make", "a", tmp_path)), plan(make, Number())
    assert plan.nodes[artifact.id].arguments() == {"base": tmp_path / "make-a", "partial": artifact.partial}
    assert artifact.partial == tmp_path / "partial" / artifact.id
    assert plan.nodes[plain.id].arguments() == {}


def test_where_it_runs_never_enters_a_key(tmp_path: Path) -> None:
    here, there = compute(tmp_path), Compute(storage=tmp_path, workers=4, zero_stage=3, micro_batch=2)
    assert chain(PlanRunner(here)).key == chain(PlanRunner(there)).key


def test_a_changed_file_is_a_changed_key(tmp_path: Path) -> None:
    from trimtab.parts import TaskSpec
    from trimtab.run.identity import identity

    file, moved = tmp_path / "rows.jsonl", tmp_path / "elsewhere.jsonl"
    file.write_text('{"text": "a", "label": 0}')
    before = identity(TaskSpec(source=str(file)))
    moved.write_bytes(file.read_bytes())
    assert identity(TaskSpec(source=str(moved))) == before
    file.write_text('{"text": "a", "label": 1}')
    assert identity(TaskSpec(source=str(file))) != before


def test_a_plan_runs_nothing_and_shares_what_is_equal(tmp_path: Path) -> None:
    run = PlanRunner(compute(tmp_path))
    chain(run)
    chain(run)
    assert [n.artifact.stage for n in run.pending] == ["make", "make", "add"]
    assert CALLS == []
    assert not compute(tmp_path).artifacts.exists()


def test_a_rerun_does_nothing_and_a_change_only_what_depends_on_it(tmp_path: Path) -> None:
    run = LocalRunner(compute(tmp_path))
    last = chain(run)
    run.wait()
    assert last.metrics() == {"value": 4.5}
    assert CALLS == ["make", "make", "add"]
    again = LocalRunner(compute(tmp_path))
    chain(again)
    assert again.pending == []
    changed = LocalRunner(compute(tmp_path))
    chain(changed, value=3.0)
    changed.wait()
    assert CALLS == ["make", "make", "add", "make", "add"]


def test_what_only_finished_stages_needed_is_not_made_again(tmp_path: Path) -> None:
    run = LocalRunner(compute(tmp_path))
    chain(run)
    run.wait()
    first = next(iter(run.nodes.values())).artifact
    (first.folder / "metrics.json").unlink()
    again = LocalRunner(compute(tmp_path))
    chain(again)
    assert again.pending == []


def test_a_failed_stage_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    events: list[dict] = []
    run = LocalRunner(compute(tmp_path), sink=events.append)
    one = run(make, Number())
    run(fail, Number(), label="doomed", data=one / "part")
    with pytest.raises(StageError, match=r"(?s)doomed.*RuntimeError: no luck.*data=make-.*/part") as caught:
        run.wait()
    assert one.ready
    kept = [p for p in compute(tmp_path).artifacts.iterdir() if p.name.startswith(".fail")]
    assert [p.name.endswith(".failed") for p in kept] == [True]
    assert str(kept[0]) in str(caught.value)
    assert [e["status"] for e in events if e["event"] == "stage_end"] == ["done", "failed"]


def test_errors_on_purpose_travel_unchanged(tmp_path: Path) -> None:
    run = LocalRunner(compute(tmp_path))
    run(fail, Number(note="data"), data=run(make, Number()))
    with pytest.raises(DataError, match="row 3 is empty"):
        run.wait()


def test_of_two_racing_writers_the_second_finds_it_done(tmp_path: Path) -> None:
    artifact = Artifact("make", "k", tmp_path)
    with building(artifact) as slow:
        with building(artifact) as fast:
            finish(artifact, fast, record={"who": "fast"}, metrics={"value": 1})
        finish(artifact, slow, record={"who": "slow"}, metrics={"value": 2})
    assert artifact.record() == {"who": "fast"}
    assert artifact.metrics() == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["make-k"]


def test_the_record_says_where_it_came_from(tmp_path: Path) -> None:
    run = LocalRunner(compute(tmp_path))
    last = chain(run)
    run.wait()
    record = last.record()
    assert record["stage"] == "add"
    assert record["spec"] == {"value": 0.5, "note": ""}
    assert set(record["inputs"]) == {"terms.a", "terms.b", "base"}
    assert json.loads((last.folder / "metrics.json").read_text()) == {"value": 4.5}


def test_every_file_behind_prompts_counts(tmp_path: Path) -> None:
    from trimtab.alignment import PromptSpec
    from trimtab.run.identity import identity

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"prompt": "p"}\n')
    other.write_text('{"prompt": "q"}\n')
    spec = PromptSpec(source=(str(one), str(other)))
    before = identity(spec)
    assert identity(PromptSpec(source=(str(other), str(one)))) != before
    other.write_text('{"prompt": "r"}\n')
    assert identity(spec) != before
    assert identity(PromptSpec(source="builtin:openings"))["source"] == "builtin:openings"


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/../../../outside", "..", "x\\..\\y"])
def test_no_name_of_a_job_leads_its_outputs_out_of_the_storage(name: str, tmp_path: Path) -> None:
    probe = {"model": "builtin:smollm2-135m", "tune": {"kind": "probe"}}
    job = {"kind": "weak_to_strong", "name": name, "task": {"source": "builtin:valence"}, "supervisor": probe}
    job |= {"ceiling": probe, "students": {"one": probe}, "compute": {"storage": str(tmp_path / "storage")}}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    loaded = load_job(tmp_path / "job.yaml")
    assert (loaded.compute.storage / "runs" / f"{loaded.name}-1").resolve().parent == tmp_path / "storage" / "runs"
    (tmp_path / "job.yaml").write_text(json.dumps(job | {"students": {name: probe}}))
    with pytest.raises(JobError, match="a student's name is letters, digits, - and _, a letter first"):
        load_job(tmp_path / "job.yaml")

"""Job files and overrides: what is read, and every mistake at once, where the user made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.alignment import PromptSpec
from trimtab.errors import JobError
from trimtab.load import load_data, load_job
from trimtab.parts import TaskSpec

JOB = """\
kind: weak_to_strong
task: {source: builtin:valence}
seeds: [0, 1, 2]
supervisor: &weak
  model: {source: builtin:smollm2-135m, layers: 4}
  tune: {kind: probe, l2: 0.003}
ceiling: &strong
  model: builtin:smollm2-135m
  tune: {kind: probe}
students:
  naive: *strong
  logconf: {<<: *strong, objective: {kind: logconf, aux_coef: 0.5}}
compute: {backend: inline}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load_job(path, overrides)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_job_is_read(job: Path) -> None:
    found = load_job(job)
    assert (found.name, found.pipeline.kind, found.pipeline.seeds) == ("job", "weak_to_strong", (0, 1, 2))
    assert found.pipeline.supervisor.model.layers == 4
    assert found.compute.storage.is_absolute()


def test_overrides_reach_fields_list_places_and_parts_that_were_not_there(job: Path) -> None:
    overrides = ["students.logconf.objective.aux_coef=0.3", "seeds.0=4", "split.supervise=10", "name=my run"]
    found = load_job(job, [*overrides, "students.late={model: builtin:smollm2-135m}"])
    assert found.pipeline.students["logconf"].objective.aux_coef == 0.3
    assert found.pipeline.seeds == (4, 1, 2)
    assert found.pipeline.split.supervise == 10
    assert found.name == "my-run"
    assert found.pipeline.students["late"].model.source == "builtin:smollm2-135m"


def test_an_override_into_an_anchor_changes_one_use_of_it(job: Path) -> None:
    found = load_job(job, ["students.naive.tune.l2=7", "ceiling.model.layers=9"])
    assert [s.tune.l2 for s in found.pipeline.students.values()] == [7, 0.1]
    assert found.pipeline.ceiling.tune.l2 == 0.1
    assert found.pipeline.ceiling.model.layers == 9
    assert found.pipeline.students["naive"].model.layers is None


def test_an_override_into_a_chain(tmp_path: Path) -> None:
    text = JOB.replace("kind: weak_to_strong", "kind: bootstrap") + "chain: [*weak]\n"
    found = load_job(written(tmp_path / "chain.yaml", text), ["chain.0.model=builtin:smollm2-135m"])
    assert found.pipeline.chain[0].model.layers is None
    assert found.pipeline.supervisor.model.layers == 4


def test_a_later_override_wins(job: Path) -> None:
    assert load_job(job, ["seeds=[7]", "seeds.0=8"]).pipeline.seeds == (8,)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seeds", "override 'seeds': write it as path.to.field=value"),
        ("a..b=1", "override 'a..b=1': write it as path.to.field=value"),
        ("seeds.3=1", "override 'seeds.3=1': '3' is no place of this list; its places are 0 to 2"),
        ("seeds.x=1", "override 'seeds.x=1': 'x' is no place of this list; its places are 0 to 2"),
        ("seeds.0.a=1", "override 'seeds.0.a=1': there is no 'a' in 0, which is not a mapping or list"),
        ("task.template={", "override 'task.template={': the value is not YAML"),
        ("lr=1", "override lr=1: lr: unknown key; here it is called learning_rate; allowed: "),
        ("supervisor.tune.l3=3", "override supervisor.tune.l3=3: supervisor.tune.l3: unknown key; did you mean 'l2'?"),
        ("ceiling.tune.kind=prob", "override ceiling.tune.kind=prob: ceiling.tune.kind: unknown kind 'prob'; did you"),
        ("ceiling.tune=probe", "override ceiling.tune=probe: ceiling.tune: should be a mapping with a kind, as in"),
        ("seeds=3", "override seeds=3: seeds: should be a list (given: 3)"),
        ("seeds=[]", "override seeds=[]: seeds: give at least one seed, each once"),
        ("seeds.1=0", "job.yaml:3 with override seeds.1=0: seeds: give at least one seed, each once"),
        ("students={}", "override students={}: students: give at least one student"),
        ("students.a+b={model: builtin:smollm2-135m}", "override students.a+b={model: builtin:smollm2-135m}: "),
        ("ceiling.model.layers=x", "should be a valid integer or a list (given: 'x')"),
        ("ceiling.model.layers=0", "ceiling.model.layers: keep at least one layer"),
        ("ceiling.model.layers=31", "ceiling.model.layers: the model has 30 layers"),
        ("ceiling.model.layers=[0, 30]", "ceiling.model.layers: the model has 30 layers"),
        ("ceiling.tune={kind: top, layers: 30}", "tune.layers is 30 but the model has 30; use kind: full"),
        ("ceiling.model=./nowhere", "ceiling.model: model 'nowhere': no config.json in nowhere; give a folder written"),
        ("ceiling.model=artifact:train-0", "ceiling.model: no model of stage 'train-0' under"),
        ("ceiling.model=builtin:smollm", "no built-in model 'smollm'; allowed: smollm2-135m"),
        ("task.source=builtin:valance", "no built-in data set 'valance'; did you mean 'valence'?"),
        ("compute.backend=inlin", "should be 'ray' or 'inline'; did you mean 'inline'? (given: 'inlin')"),
        ("name=[1]", "override name=[1]: name: should be text (given: [1])"),
    ],
)
def test_one_mistake_of_an_override(job: Path, override: str, said: str) -> None:
    found = mistakes(job, override)
    assert len(found) == 1
    assert said in found[0]


def test_a_model_of_the_hub_that_is_not_here_when_offline(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in mistakes(job, "ceiling.model=someone/something")[0]


def test_every_mistake_at_once_each_where_it_was_made(tmp_path: Path) -> None:
    text = JOB.replace("l2: 0.003", "l3: 0.003").replace("builtin:valence", "builtin:valance")
    text = text.replace("inline}", "inline, worker: 2}").replace("aux_coef", "aux_coeff")
    found = mistakes(written(tmp_path / "bad.yaml", text), "studnts.x=2", "seeds.9=1", "ceiling.batch_size=many")
    places = [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found]
    assert sorted(places) == sorted(
        [
            "override 'seeds.9=1': '9' is no place of this list; its places are 0 to 2",
            "bad.yaml:13: compute.worker",
            "bad.yaml:6: supervisor.tune.l3",
            "override ceiling.batch_size=many: ceiling.batch_size",
            "bad.yaml:12: students.logconf.objective.aux_coeff",
            "override studnts.x=2: studnts",
            "bad.yaml:2: task.source",
        ]
    )


def test_a_mistake_in_an_anchor_is_said_once_where_it_stands(tmp_path: Path) -> None:
    found = mistakes(written(tmp_path / "bad.yaml", JOB.replace("tune: {kind: probe}", "tune: {kind: probe, l3: 1}")))
    assert len(found) == 1
    assert found[0].startswith(
        "bad.yaml:9: ceiling.tune.l3 (and in students.naive.tune.l3, students.logconf.tune.l3): unknown key"
    )


def test_combinations_are_seen_beside_other_mistakes(job: Path) -> None:
    full = ["ceiling.tune={kind: full}", "ceiling.batch_size=7", "compute.workers=2"]
    found = mistakes(job, *full, "supervisor.tune.l3=1")
    assert any("7 rows cannot be shared by 2 workers" in line for line in found)
    assert any("supervisor.tune.l3" in line for line in found)


def test_rows_are_shared_by_every_number_of_workers_that_a_group_may_come_to_have(job: Path) -> None:
    compute = ["ceiling.tune={kind: full}", "ceiling.batch_size=16", "compute.workers=6", "compute.min_workers=2"]
    assert any("16 rows cannot be shared by 3 or 5 or 6 workers" in line for line in mistakes(job, *compute))


def test_an_unknown_kind_does_not_hide_mistakes_of_compute(job: Path) -> None:
    found = mistakes(job, "kind=weak", "compute.x=1")
    assert len(found) == 2
    assert "allowed: bootstrap, " in found[1]


def test_storage_that_cannot_be_a_folder(job: Path) -> None:
    found = mistakes(job, f"compute.storage={job}/below")
    assert len(found) == 1
    assert "is a file or lies below one" in found[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; a job file is a mapping with the key kind"),
        ("- a", "holds a list; a job file is a mapping"),
        ("a: b: c", ":1: not YAML: mapping values are not allowed here"),
        ("a: 1\na: 2", ":2: a stands twice"),
        ("a: &x {b: *x}", "an anchor holds itself"),
        ("a: 1", ":1: kind: is missing; allowed: bootstrap, "),
        ("kind: !!python/object:os.system {}", ":1: not YAML: could not determine a constructor"),
    ],
)
def test_files_that_are_no_job(tmp_path: Path, text: str, said: str) -> None:
    found = mistakes(written(tmp_path / "bad.yaml", text))
    assert len(found) == 1
    assert found[0].startswith(f"bad.yaml{said}" if said.startswith(":") else f"bad.yaml: {said}")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\x80abc")
    assert "cannot be read" in mistakes(tmp_path / "bad.yaml")[0]


def test_a_file_that_is_not_there(job: Path) -> None:
    assert mistakes(job.with_name("jop.yaml")) == [
        "jop.yaml: no such job file; did you mean 'job.yaml'?; there: job.yaml"
    ]


def test_a_key_that_yaml_reads_as_a_truth_value(tmp_path: Path) -> None:
    found = mistakes(written(tmp_path / "bad.yaml", JOB + "split: {no: 3}\n"))
    assert found == ["bad.yaml:14: split: the key False should be text: put it in quotes"]


def test_a_task_from_the_command_line() -> None:
    task = load_data("rows.csv", ["columns.text=body", "max_bad_fraction=0.5"])
    assert (task.source, task.columns.text, task.max_bad_fraction) == ("rows.csv", "body", 0.5)
    with pytest.raises(JobError) as caught:
        load_data("rows.csv", ["columns.txt=body", "format=clasification"])
    assert len(caught.value.problems) == 2
    assert "did you mean 'text'?" in caught.value.problems[1]
    assert "'classification' or 'multiple_choice'; did you mean 'classification'?" in caught.value.problems[0]


def test_data_from_the_command_line_are_prompts_where_fields_or_columns_say_so(tmp_path: Path) -> None:
    pairs, rows = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    rows.write_text('{"text": "p", "label": 1}\n')
    assert isinstance(load_data(str(rows)), TaskSpec)
    assert isinstance(load_data(str(pairs)), PromptSpec)
    assert isinstance(load_data("builtin:openings"), PromptSpec)
    assert load_data(str(rows), ["columns.prompt=text"]).columns.prompt == "text"
    assert isinstance(load_data(str(pairs), ["columns.label=chosen"]), TaskSpec)
    with pytest.raises(JobError, match="did you mean 'prompt'"):
        load_data(str(pairs), ["columns.promt=text"])

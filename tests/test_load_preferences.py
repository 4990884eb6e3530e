"""Mistakes in preference jobs, worded for the one who made them; and that looking at such a job stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import JobError
from trimtab.load import load_job
from trimtab.methods.preferences.kto import Kto

JOB = """\
kind: preference
task: {source: builtin:openings}
supervisor: {kind: reward, model: {source: builtin:smollm2-135m, layers: 4}}
ceiling: &strong
  model: {source: builtin:smollm2-135m}
students:
  dpo: *strong
  kto: {<<: *strong, objective: {kind: kto}}
compute: {backend: inline}
"""
REWARD = """\
kind: reward
task: {source: builtin:openings}
supervisor: &weak {model: builtin:smollm2-135m, tune: {kind: probe}}
ceiling: *weak
students: {naive: *weak}
"""
LIGHT = """
import sys
from trimtab import verbs
verbs.{verb}({job!r})
heavy = {{"torch", "ray", "transformers", "trl", "deepspeed", "mlflow", "datasets", "peft", "numpy", "vaderSentiment"}}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
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


def test_a_preference_job_is_read(job: Path) -> None:
    found = load_job(job).pipeline
    assert found.students["kto"].objective == Kto()
    assert (found.supervisor.kind, found.supervisor.objective.kind) == ("reward", "bradley_terry")
    assert found.gold.kind == "vader"
    found = load_job(job, ["supervisor={kind: policy, model: builtin:smollm2-135m}", "sampling.samples=8"]).pipeline
    assert (found.weak, found.sampling.samples) == (found.supervisor, 8)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "students.kto.objective.kind=ktoo",
            "students.kto.objective.kind: unknown kind 'ktoo'; did you mean 'kto'?; all",
        ),
        ("students.kto.objective.kind=xent", "students.kto.objective.kind: unknown kind 'xent'"),
        (
            "students.kto.objective.bta=1",
            "students.kto.objective.bta: unknown key; did you mean 'beta'?; allowed: beta, ",
        ),
        ("students.dpo.lr=1", "students.dpo.lr: unknown key; here it is called learning_rate; allowed: "),
        ("students.dpo.tune.kind=probe", "students.dpo.tune.kind: unknown kind 'probe'"),
        ("students.dpo.after={}", "students.dpo.after.model: is missing"),
        ("students.new={objective: {kind: dpo}}", "students.new.model: is missing"),
        ("students.dpo.objective=dpo", "students.dpo.objective: should be a mapping with a kind, as in {kind: NAME}"),
        (
            "supervisor.kind=reward_model",
            "supervisor.kind: unknown kind 'reward_model'; did you mean 'reward'?; allowed: ",
        ),
        ("supervisor.objective.kind=dpo", "supervisor.objective.kind: unknown kind 'dpo'"),
        ("gold.kind=vadre", "gold.kind: unknown kind 'vadre'; did you mean 'vader'?; allowed: "),
        ("gold={kind: reward_model}", "gold.model: is missing"),
        (
            "ceiling.model=./nowhere",
            "ceiling.model: model 'nowhere': no config.json in nowhere; give a folder written by",
        ),
        ("supervisor.model=builtin:smollm", "no built-in model 'smollm'; allowed: smollm2-135m"),
        ("gold={kind: reward_model, model: ./rm}", "gold.model: model 'rm': no config.json in rm; give a folder"),
        ("task.source=builtin:opening", "task.source: no built-in data set 'opening'; did you mean 'openings'?"),
        ("task.source=[builtin:openings, ./none.jsonl]", "task.source: none.jsonl: no such file or folder"),
        ("task.test=./none.jsonl", "task.test: none.jsonl: no such file or folder"),
        (
            "task.columns.promt=x",
            "task.columns.promt: unknown key; did you mean 'prompt'?; allowed: chosen, group, id, ",
        ),
        (
            "pairs.strategy=best-worst",
            "pairs.strategy: should be 'best_worst', 'all' or 'random'; did you mean 'best_wor",
        ),
        ("sampling.temperature=-1", "sampling.temperature: should be greater than or equal to 0 (given: -1)"),
        ("rounds=0", "rounds: should be greater than or equal to 1 (given: 0)"),
        ("ceiling.tune={kind: top, layers: 30}", "tune.layers is 30 but the model has 30; use kind: full"),
        ("students.dpo={<<: 1}", "students.dpo"),
        ("students={}", "students: give at least one student"),
        (
            "students={a b: {model: builtin:smollm2-135m}}",
            "a student's name is letters, digits, - and _, a letter first",
        ),
    ],
)
def test_one_mistake_of_an_override(job: Path, override: str, said: str) -> None:
    found = mistakes(job, override)
    assert len(found) == 1
    assert said in found[0]


def test_a_batch_that_workers_cannot_share_is_refused_everywhere(job: Path) -> None:
    found = mistakes(job, "compute.workers=3")
    assert [line.split(": ")[1] for line in found] == [
        "supervisor.batch_size",
        "ceiling.batch_size",
        "students.dpo.batch_size",
        "students.kto.batch_size",
    ]


def test_layers_are_counted_after_the_cut(job: Path) -> None:
    (found,) = mistakes(job, "supervisor.tune={kind: top, layers: 4}")
    assert found.endswith("supervisor.tune: tune.layers is 4 but the model has 4; use kind: full")


@pytest.mark.parametrize("where", ["compute.workers=2", "compute.micro_batch=8"])
def test_an_objective_of_whole_batches_takes_them_whole(job: Path, where: str) -> None:
    """Its loss would hang on how a batch is shared out."""
    sorts = "students.kto.objective={kind: dpo, loss_type: aot}"
    assert load_job(job, [sorts, "compute.micro_batch=32"]).compute.micro_batch == 32
    (found,) = mistakes(job, sorts, where)
    assert "students.kto.objective: compares all rows of a batch: set compute.workers to 1" in found


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["students.kto.objective={kind: wspo}"],
            "students.kto: wspo transfers a weak policy's shift, so name a weak_policy",
        ),
        (["rounds=2", "sampling=null"], "rounds: on-policy rounds need sampling"),
        (["gold={kind: given}"], "gold: a given order exists for the task's own pairs only, so set sampling: null"),
    ],
)
def test_parts_that_do_not_go_together(job: Path, overrides: list[str], said: str) -> None:
    found = mistakes(job, *overrides)
    assert len(found) == 1
    assert said in found[0]


def test_every_mistake_at_once_each_where_it_was_made(tmp_path: Path) -> None:
    text = JOB.replace("kind: kto", "kind: kot").replace("builtin:openings", "builtin:openngs")
    (tmp_path / "bad.yaml").write_text(text.replace("kind: reward,", "kind: rewrd,"))
    found = mistakes(tmp_path / "bad.yaml", "studnts.x=1", "measure.sampling.samples=0")
    places = sorted(": ".join(line.split(": ")[:2]) for line in found)
    assert places == [
        "bad.yaml:2: task.source",
        "bad.yaml:3: supervisor.kind",
        "bad.yaml:8: students.kto.objective.kind",
        "override measure.sampling.samples=0: measure.sampling.samples",
        "override studnts.x=1: studnts",
    ]


def test_a_reward_job_has_mistakes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text(REWARD)
    assert load_job(tmp_path / "reward.yaml").pipeline.students["naive"].tune.kind == "probe"
    (found,) = mistakes(tmp_path / "reward.yaml", "students.naive.objective.kind=bradley-terry")
    assert "unknown kind 'bradley-terry'; did you mean 'bradley_terry'?" in found
    (found,) = mistakes(tmp_path / "reward.yaml", "ensemble.how=median")
    assert "ensemble.how: should be 'mean', 'min' or 'uncertainty'" in found


@pytest.mark.parametrize("text", [JOB, REWARD], ids=["preference", "reward"])
@pytest.mark.parametrize("verb", ["check", "plan"])
def test_looking_at_a_job_imports_little(tmp_path: Path, text: str, verb: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    code = LIGHT.format(verb=verb, job=str(tmp_path / "job.yaml"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)

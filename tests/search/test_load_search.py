"""Search files and overrides: what is read, and every mistake at once, where the user made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import JobError, ResourceError
from trimtab.load import read_yaml
from trimtab.methods.objectives.logconf import LogConf
from trimtab.search.checks import laid_out, names, on_test, tells, warnings
from trimtab.search.job import made
from trimtab.search.load import load_search
from trimtab.search.of_method import search_of
from trimtab.search.tuner import in_reach
from trimtab.stages.whats import TELLS

JOB = """\
kind: weak_to_strong
task: {source: builtin:valence}
seeds: [0, 1, 2]
supervisor: {model: {source: builtin:smollm2-135m, layers: 4}, tune: {kind: probe}}
ceiling: &strong
  model: builtin:smollm2-135m
  tune: {kind: probe}
students:
  naive: *strong
  logconf: {<<: *strong, objective: {kind: logconf, aux_coef: 0.5}}
compute: {backend: inline}
"""
SEARCH = """\
job: jobs/job.yaml
space:
  students.logconf.objective.aux_coef: {uniform: [0.1, 0.9]}
  students.logconf.learning_rate: {loguniform: [1.0e-3, 0.1]}
metric: student.logconf/agreement
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_STORAGE", str(tmp_path / "storage"))
    for folder, name, text in (("jobs", "job", JOB), ("tune", "a", SEARCH)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
    return tmp_path / "tune" / "a.yaml"


def written(file: Path, **keys: str) -> Path:
    """The search file with some of its top-level keys in other words."""
    blocks: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if not line.startswith(" "):
            key = line.partition(":")[0]
        blocks[key] = blocks.get(key, "") + line.removeprefix(f"{key}:") + "\n"
    blocks |= {key: f" {value}\n" for key, value in keys.items()}
    file.write_text("".join(f"{key}:{text}" for key, text in blocks.items()))
    return file


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load_search(path, overrides)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_a_search_is_read_and_its_job_found_from_the_folder_above(file: Path) -> None:
    found = load_search(file)
    assert found.name == "a"
    assert found.id.startswith("a-")
    assert found.default.pipeline.validation.rows == 200
    assert found.default.pipeline.seeds == (0,)
    tried = found.job({"students.logconf.objective.aux_coef": 0.3}, [4]).pipeline
    assert (tried.students["logconf"].objective.aux_coef, tried.seeds) == (0.3, (4,))
    assert tried.students["naive"] == found.default.pipeline.students["naive"]


def test_overrides_reach_the_search_and_its_job(file: Path) -> None:
    found = load_search(
        file,
        [
            "budget.trials=4",
            "students.logconf.warmup_ratio=0.2",
            "set.students.logconf.tune.steps=7",
            "space.students.logconf.objective.warmup.uniform=[0, 0.4]",
        ],
    )
    student = found.default.pipeline.students["logconf"]
    assert found.spec.budget.trials == 4
    assert (student.warmup_ratio, student.tune.steps) == (0.2, 7)
    assert found.spec.space["students.logconf.objective.warmup"].uniform == (0, 0.4)


def test_smoke_is_applied_before_overrides_and_only_when_asked(file: Path) -> None:
    file.write_text(SEARCH + "smoke: {budget.trials: 3, validation: 40, students.logconf.tune.steps: 5}\n")
    found = load_search(file, ["validation=50"], smoke=True)
    assert (found.spec.budget.trials, found.spec.validation) == (3, 50)
    assert found.default.pipeline.students["logconf"].tune.steps == 5
    assert load_search(file).spec.budget.trials == 16


def test_the_id_follows_what_trials_hang_on_and_nothing_else(file: Path) -> None:
    own = load_search(file).id
    for same in (
        "budget.trials=4",
        "final.seeds=[7]",
        "budget.concurrent=1",
        "compute.backend=ray",
        "report.level=0.9",
    ):
        assert load_search(file, [same]).id == own, same
    for other in (
        "validation=100",
        "seeds=[1]",
        "students.logconf.tune.l2=1",
        "searcher.kind=random",
        "truth_budget=8",
    ):
        assert load_search(file, [other]).id != own, other


def test_every_mistake_is_told_at_once_where_it_was_made(file: Path) -> None:
    file.write_text(
        """\
job: jobs/job.yaml
set:
  students.logconf.num_epoch: 3
space:
  students.logconf.objective.aux_coef: {uniform: [0.1, 1.9]}
  students.logconf.objective.auxcoef: {uniform: [0.1, 0.9]}
  students.logcnf.learning_rate: {loguniform: [0.001, 0.1]}
  students.logconf.tune.steps: {uniform: [10, 100]}
  students.naive.objective.kind: {choice: [xent], uniform: [1, 2]}
  students.naive.learning_rate: {loguni: [1, 2]}
  students.naive.tune.l2: {loguniform: [0, 2]}
  compute.workers: {choice: [1, 2]}
metric: student.logcnf/agreement
scheduler: {kind: asha}
budget: {minutes: 0.01, trial: 3}
"""
    )
    found = "\n".join(mistakes(file))
    for said in (
        "a.yaml:3: set.students.logconf.num_epoch: unknown key; did you mean 'num_train_epochs'?",
        "a.yaml:5: space.students.logconf.objective.aux_coef: with 1.9: should be less than or equal to 1",
        "a.yaml:6: space.students.logconf.objective.auxcoef: there is no 'auxcoef' in students.logconf.objective; "
        "did you mean 'aux_coef'?",
        "a.yaml:7: space.students.logcnf.learning_rate: there is no 'logcnf' in students; did you mean 'logconf'?",
        "a.yaml:8: space.students.logconf.tune.steps: with 44.4: should be a valid integer",
        "for whole numbers take randint or choice",
        "a.yaml:9: space.students.naive.objective.kind: has choice and uniform: give one",
        "a.yaml:10: space.students.naive.learning_rate.loguni: unknown key; did you mean 'loguniform'?",
        "a.yaml:11: space.students.naive.tune.l2.loguniform: the lower end of a loguniform is above 0",
        "a.yaml:12: space.compute.workers: there is nothing to search in compute",
        "a.yaml:13: metric: no outcome of the validation rows is called 'student.logcnf'; did you mean",
        "a.yaml:14: scheduler: asha goes by agreement on rows held out, but students.logconf.eval_fraction is 0: "
        "set: {students.logconf.eval_fraction: 0.1}",
        "a.yaml:15: budget.trial: unknown key; did you mean 'trials'?",
    ):
        assert said in found


def test_truth_steers_a_search_only_where_the_file_says_how_much(file: Path) -> None:
    written(file, metric="student.logconf/accuracy")
    (problem,) = mistakes(file)
    assert problem.startswith("a.yaml:") and "truth_budget: 64, or take student.logconf/agreement" in problem
    assert load_search(file, ["truth_budget=64"]).default.pipeline.validation.truth == 64
    (problem,) = mistakes(file, "truth_budget=150")
    assert "more_truth: true" in problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"metric": "student.logconf/agrement"}, "does not tell 'agrement'; did you mean 'agreement'?"),
        ({"metric": "agreement"}, "there: student.naive, student.logconf"),
        ({"metric": "ceiling/accuracy"}, "no outcome of the validation rows is called 'ceiling'"),
        ({"metric": "student.naive/agreement"}, "changes nothing that student.naive/agreement hangs on"),
        ({"mode": "[max, min]"}, "a.yaml:6: mode: 2 for 1 metrics"),
        ({"seeds": "[0, 0]"}, "seeds: give at least one seed, each once"),
        ({"final": "{seeds: [7, 7]}"}, "final.seeds: give each seed once"),
        ({"seeds": "[100]"}, "final.seeds: seed 100 is one of the trials' seeds"),
        ({"job": "jobs/jb.yaml"}, "a.yaml:1: job: jobs/jb.yaml: no such job file"),
        ({"set": "{oracle: true}"}, "oracle: true, which shows the truth of test rows"),
        ({"searcher": "{kind: grid}"}, "a grid has no points along it"),
        ({"scheduler": "{kind: pbt}"}, "of kind policy in a preference job; here they lie below students.logconf"),
        ({"budget": "{minutes: 0.1}"}, "0.1 min are not enough for one trial"),
        ({"space": "{}"}, "space"),
        ({"set": "{students.logconf.tune.l2.x: 1}"}, "set.students.logconf.tune.l2.x: "),
    ],
)
def test_one_mistake_is_one_message(file: Path, keys: dict[str, str], said: str) -> None:
    assert said in "\n".join(mistakes(written(file, **keys)))


def test_mistakes_of_the_job_itself_stand_in_the_job_file(file: Path) -> None:
    job = file.parents[1] / "jobs" / "job.yaml"
    job.write_text(JOB.replace("aux_coef: 0.5", "aux_coef: 5"))
    (problem,) = mistakes(file)
    assert problem.endswith(
        "jobs/job.yaml:10: students.logconf.objective.aux_coef: should be less than or equal to 1 (given: 5)"
    )


def test_a_method_is_a_dimension_and_fields_wait_for_theirs(file: Path) -> None:
    kind = "students.logconf.objective.kind"
    space = f"""\

  {kind}: {{choice: [xent, logconf, product]}}
  students.logconf.objective.aux_coef: {{uniform: [0.2, 0.9], when: {{{kind}: logconf}}}}
  students.logconf.objective.alpha: {{uniform: [0.25, 2], when: {{{kind}: [product]}}}}"""
    found = load_search(written(file, space=space))
    values = {"students.logconf.objective.alpha": 2.0, kind: "product"}
    assert found.job(values, [0]).pipeline.students["logconf"].objective.model_dump() == {
        "kind": "product",
        "alpha": 2.0,
        "beta": 1.0,
    }


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("{students.logconf.objective.kind: product}", "is never 'product': in the job it is 'logconf'"),
        ("{students.logconf.objective.knd: product}", "there is no 'knd' in students.logconf.objective"),
        ("{students.logconf.learning_rate: 7}", "is never 7: its range has 0.001 to 0.1"),
        ("{students.logconf.objective.aux_coef: 0.5}", "each wait for the other"),
    ],
)
def test_a_condition_that_never_holds_is_a_mistake(file: Path, when: str, said: str) -> None:
    range_ = "space.students.logconf.objective.aux_coef={uniform: [0, 1], when: " + when + "}"
    assert said in "\n".join(mistakes(file, range_))


def test_parts_that_a_job_leaves_out_are_written_out_for_their_fields(file: Path) -> None:
    written(file, space="{students.naive.objective.hard: {choice: [false, true]}}", metric="student.naive/agreement")
    found = load_search(file)
    assert found.raw["students"]["naive"]["objective"] == {"kind": "xent", "hard": False}
    assert found.job({"students.naive.objective.hard": True}, [0]).pipeline.students["naive"].objective.hard


def test_a_grid_larger_than_the_budget_is_told_and_allowed(file: Path) -> None:
    space = (
        "{students.logconf.tune.steps: {quniform: [10, 50, 10]}, students.logconf.tune.l2: {choice: [0, 0.1, 1, 2]}}"
    )
    found = load_search(written(file, space=space, searcher="{kind: grid}"), ["mode=min"])
    assert warnings(found)[0] == "the grid has up to 20 points, but budget.trials is 16"
    assert "usually the max" in warnings(found)[1]


def test_a_search_on_a_url_keeps_its_study_here_and_does_not_spread_over_nodes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_MIRROR", str(file.parent / "mirror"))
    monkeypatch.setenv("TRIMTAB_STORAGE", "s3://bucket/place")
    found = load_search(file)
    assert f"s3://bucket/place, but the study and the search's pages stay on this node: {found.storage}" in "".join(
        warnings(found)
    )
    assert found.study_url == f"sqlite:///{file.parent / 'mirror' / found.storage.name}/optuna.db"
    in_reach(found.default.compute, 1)
    with pytest.raises(ResourceError, match="s3://bucket/place is not for 2 nodes; set compute.storage to a folder"):
        in_reach(found.default.compute, 2)
    in_reach(found.default.compute.model_copy(update={"remote": None}), 2)


def test_a_method_s_own_ranges_need_no_search_file(file: Path) -> None:
    job = file.parents[1] / "jobs" / "job.yaml"
    found = search_of(job, ["budget.trials=3"], method="logconf")
    assert found.spec.metric == "student.logconf/agreement"
    assert dict(found.spec.space) == {f"students.logconf.objective.{k}": v for k, v in LogConf.ranges.items()}
    assert found.name == "job-logconf"
    assert found.spec.budget.trials == 3


def test_a_method_that_is_not_there_or_more_than_once_is_told(file: Path) -> None:
    job = file.parents[1] / "jobs" / "job.yaml"
    with pytest.raises(JobError, match="no part of the job is of this kind; did you mean 'logconf'"):
        search_of(job, method="lgconf")
    job.write_text(JOB.replace("compute", "  again: {<<: *strong, objective: {kind: logconf}}\ncompute"))
    with pytest.raises(JobError, match=r"name one: students.logconf.objective, students.again.objective"):
        search_of(job, method="logconf")
    assert search_of(job, method="students.again.objective").spec.metric == "student.again/agreement"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_outcome_of_every_job_is_one_whose_metrics_are_known_and_that_test_rows_can_tell(path: Path) -> None:
    raw, _ = read_yaml(path, "job file", "kind")
    job, _ = made(raw | {"validation": {"rows": 40, "truth": 20}}, {}, [0], name=path.stem)
    if job is None:
        pytest.skip("its data are not here")
    runner = laid_out(job)
    for name, (artifact, *_) in names(runner).items():
        assert artifact.stage in TELLS
        assert on_test(runner, name)
        assert tells(runner, name)
        assert all(what.final for what in tells(runner, name).values())


def test_what_a_guide_on_text_cannot_tell_is_not_offered(file: Path) -> None:
    job = file.parents[1] / "jobs" / "job.yaml"
    job.write_text(GUIDED.replace("guide: {kind: genarm}, strengths: {alpha: [0.5, 1]}", "guide: {kind: nudging}"))
    raw, _ = read_yaml(job, "job file", "kind")
    runner = laid_out(made(raw | {"validation": {"rows": 40, "truth": 20}}, {}, [0], name="job")[0])
    assert list(names(runner)) == ["guided.mine"]
    assert list(tells(runner, "guided.mine")) == ["gold", "tokens"]


GUIDED = """\
kind: guided
task: {source: builtin:openings, limit: 250}
base: builtin:smollm2-135m
trained: {arm: {model: {source: builtin:smollm2-135m, layers: 20}, objective: {kind: arm}}}
guides:
  mine: {helpers: [arm], guide: {kind: genarm}, strengths: {alpha: [0.5, 1]}}
"""


def test_a_guide_is_searched_by_its_reward_with_truth_asked_for(file: Path) -> None:
    job = file.parents[1] / "jobs" / "job.yaml"
    job.write_text(GUIDED)
    with pytest.raises(JobError, match="truth_budget: 64, or take guided.mine/kl"):
        search_of(job, method="genarm")
    found = search_of(job, ["truth_budget=32"], method="genarm")
    assert found.spec.metric == "guided.mine/gold"
    assert list(found.spec.space) == ["guides.mine.guide.alpha"]
    assert found.default.pipeline.guides["mine"].strengths == {}
    assert found.job({"guides.mine.guide.alpha": 3.0}, [0]).pipeline.guides["mine"].guide.alpha == 3.0

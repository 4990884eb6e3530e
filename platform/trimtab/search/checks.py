"""Whether a search's metrics, scheduler and budget suit its job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from trimtab.load import PIPELINES, Job
from trimtab.mistakes import TRAININGS, Mistake, nearest, typed
from trimtab.run.artifact import RECORD, Artifact, PlanRunner
from trimtab.run.leaks import leaks
from trimtab.search.fields import Ground, candidates, points
from trimtab.search.job import Search, get, made, study_url
from trimtab.search.spec import Asha, Median, Pbt, SearchSpec
from trimtab.stages.whats import What, told_by

USUAL_TRUTH = 64
START_MINUTES = 0.2
"""Ray's own start takes about so long."""
FIXED = ("model", "tune", "num_train_epochs", "after", "kind", "seed", "max_length")
"""Fields of a policy that cannot change from one generation to the next."""


def laid_out(job: Job) -> PlanRunner:
    """The job's stages, nothing run."""
    runner = PlanRunner(job.compute)
    job.pipeline(runner)
    return runner


def names(runner: PlanRunner) -> dict[str, list[Artifact]]:
    """What a metric can be about: each NAME with the artifacts that tell, one a seed."""
    return {name: found for (split, name), found in runner.outcomes.items() if split == "validation"}


def tells(runner: PlanRunner, name: str) -> dict[str, What]:
    """What there is to say of a NAME."""
    node = runner.nodes[names(runner)[name][0].id]
    return told_by(node.artifact.stage, node.spec, node.inputs)


def what_of(runner: PlanRunner, metric: str) -> What:
    """What a metric tells."""
    name, _, what = metric.rpartition("/")
    return tells(runner, name)[what]


def on_test(runner: PlanRunner, name: str) -> str | None:
    """The NAME that tells most of the same model on test: the gold reward of its samples, else itself."""
    there = {one for split, one in runner.outcomes if split == "test"}
    if f"{name}.samples" in there:
        return f"{name}.samples"
    return max((one for one in there if name == one or name.startswith(f"{one}.")), key=len, default=None)


def metric_mistakes(spec: SearchSpec, job: Job) -> Iterator[Mistake]:
    """A metric that no outcome of the validation rows tells, or that takes truth without a budget."""
    runner = laid_out(job)
    found = names(runner)
    for i, metric in enumerate(spec.metrics):
        loc = ("metric",) if isinstance(spec.metric, str) else ("metric", i)
        name, slash, what = metric.rpartition("/")
        if not slash or name not in found:
            there = ", ".join(found) or "none, for this kind of experiment has no validation"
            close = nearest(name or metric, found)
            yield loc, f"no outcome of the validation rows is called {name or metric!r}{close}; there: {there}"
            continue
        told = tells(runner, name)
        if what not in told:
            yield loc, f"{name} does not tell {what!r}{nearest(what, told)}; it tells {', '.join(told)}"
        elif told[what].truth and not spec.truth_budget:
            free = [one for one, about in told.items() if not about.truth]
            other = f", or take {name}/{free[0]}" if free else ""
            yield (
                loc,
                (
                    f"{what} is against the truth: say how many rows of it may steer the search, "
                    f"truth_budget: {min(USUAL_TRUTH, spec.validation)}{other}"
                ),
            )
        elif on_test(runner, name) is None:
            yield loc, f"{name} has no counterpart on the test rows, so the winner could not be compared"
        else:
            yield from (
                (loc, f"{metric} hangs on truth that no search may see: {text}") for text in leaks(runner, {name})
            )


def needless(spec: SearchSpec, ground: Ground, path: str, metrics: dict[str, str]) -> str | None:
    """Said where a field changes nothing that the search's metrics hang on."""
    held, seen = ground.conditions(path), set()
    for value in candidates(spec.space[path]):
        job, _ = made(ground.raw, held | {path: value}, spec.seeds[:1], name=ground.name)
        if job is None:
            return None
        found = names(laid_out(job))
        seen.add(tuple(a.id for name in metrics for a in found.get(name, [])))
    if len(seen) > 1 or points(spec.space[path]) == 1:
        return None
    return f"changes nothing that {' or '.join(metrics.values())} hangs on"


def scheduler_mistakes(spec: SearchSpec, raw: dict[str, Any]) -> Iterator[Mistake]:
    """A scheduler that the searched fields give nothing to go by."""
    owners = {path: training_of(raw, path) for path in spec.space}
    if isinstance(spec.scheduler, Asha | Median):
        yield from _unwatched(spec, raw, {owner for owner in owners.values() if owner})
    if isinstance(spec.scheduler, Pbt):
        first = next(iter(owners.values()))
        policy = first and first.startswith("students.") and get(raw, f"{first}.kind") in (None, "policy")
        there = ", ".join(sorted({str(owner or "none") for owner in owners.values()}))
        if len(set(owners.values())) > 1 or not (policy and raw["kind"] == "preference"):
            yield (
                ("scheduler",),
                (
                    "pbt goes on from trained policies, so all searched fields lie below one students.NAME of kind "
                    f"policy in a preference job; here they lie below {there}"
                ),
            )
            return
        for path in spec.space:
            if (field := path.removeprefix(f"{first}.").split(".")[0]) in FIXED:
                yield ("space", path), f"pbt cannot change {field} from one generation to the next: leave it out"
        if spec.budget.trials < 2:
            yield ("budget", "trials"), "pbt needs a population: two trials at least"


def _unwatched(spec: SearchSpec, raw: dict[str, Any], owners: set[str]) -> Iterator[Mistake]:
    kind = spec.scheduler.kind
    if not owners:
        yield ("scheduler",), f"{kind} stops trainings early, but no searched field is of a training: set kind: none"
    for owner in sorted(owners):
        searched = spec.space.get(f"{owner}.eval_fraction")
        held = min(candidates(searched)) if searched else get(raw, f"{owner}.eval_fraction")
        if get(raw, f"{owner}.kind") == "online":
            yield ("scheduler",), f"{kind} goes by rows held out, and {owner} samples its own: set kind: none"
        elif not held:
            yield (
                ("scheduler",),
                (
                    f"{kind} goes by agreement on rows held out, but {owner}.eval_fraction is 0: "
                    f"set: {{{owner}.eval_fraction: 0.1}}"
                ),
            )


def training_of(raw: dict[str, Any], path: str) -> str | None:
    """The training that a dotted field lies in."""
    places = [".".join(map(str, loc)) for loc, cls, _ in typed(PIPELINES[raw["kind"]], raw) if cls in TRAININGS]
    return max((place for place in places if path.startswith(f"{place}.")), key=len, default=None)


def budget_mistakes(spec: SearchSpec, job: Job, raw: dict[str, Any]) -> Iterator[Mistake]:
    """Too little time for one trial, as far as it can be told; rows of truth that may not be; seeds given twice."""
    if len(set(spec.final.seeds)) < len(spec.final.seeds):
        yield ("final", "seeds"), "give each seed once"
    if getattr(job.pipeline, "oracle", False):
        yield ("job",), "the job has oracle: true, which shows the truth of test rows: set: {oracle: false}"
    for path, found in spec.space.items():
        if spec.searcher.kind == "grid" and points(found) is None:
            yield ("space", path), "a grid has no points along it: take choice, quniform or randint"
    least, stage = longest_stage(spec, job)
    minutes = spec.budget.minutes
    if minutes and minutes < max(least, START_MINUTES):
        why = f"{stage} alone has never taken less than {least:.1f} min here" if least > START_MINUTES else ""
        why = why or f"Ray starts in about {START_MINUTES:g} min"
        yield ("budget", "minutes"), f"{minutes:g} min are not enough for one trial: {why}"


def longest_stage(spec: SearchSpec, job: Job) -> tuple[float, str]:
    """Of what a trial would run, the stage that takes longest even at the best time of its like; in minutes."""
    runner = laid_out(job)
    found = names(runner)
    wanted = {metric.rpartition("/")[0] for metric in spec.metrics} & set(found)
    runner.ends = [artifact for name in wanted for artifact in found[name]]
    best: dict[str, float] = {}
    for path in Path(job.compute.artifacts).glob(f"*/{RECORD}"):
        record = json.loads(path.read_text())
        like = _like(record["stage"], record["spec"])
        best[like] = min(best.get(like, float("inf")), record["seconds"] / 60)
    known = [(best.get(_like(n.artifact.stage, n.spec.model_dump(mode="json")), 0.0), n.label) for n in runner.pending]
    return max(known, default=(0.0, ""))


def _like(stage: str, spec: dict[str, Any]) -> str:
    fields = ("model", "tune", "num_train_epochs", "sampling", "protocol")
    return json.dumps([stage, {name: spec.get(name) for name in fields}], sort_keys=True)


def warnings(search: Search) -> list[str]:
    """What is allowed, and may still not be meant."""
    spec, found = search.spec, []
    size = prod(points(one) or 1 for one in spec.space.values())
    if spec.searcher.kind == "grid" and size > spec.budget.trials:
        found.append(f"the grid has up to {size} points, but budget.trials is {spec.budget.trials}")
    runner = laid_out(search.default)
    for metric, mode in zip(spec.metrics, spec.modes, strict=True):
        if (better := what_of(runner, metric).better) != mode:
            found.append(f"mode: {mode} for {metric}, of which usually the {better} is looked for")
    if url := search.default.compute.remote:
        here = study_url(search.storage).startswith("sqlite")
        own = "the study and the search's pages stay" if here else "the search's pages stay"
        found.append(f"stages go to {url}, but {own} on this node: {search.storage}")
    return found

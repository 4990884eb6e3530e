"""The last word on a search: winner and untuned default on test rows, over seeds that no trial has seen.

S seeds, N rows, M entries, R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import StageError
from trimtab.load import Job
from trimtab.metrics import Interval, percentiles, resample
from trimtab.progress import Sink
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.run.remote import fetched
from trimtab.search.checks import laid_out, on_test, what_of
from trimtab.search.job import Search
from trimtab.search.record import Record, front, leaders
from trimtab.search.winner import write_aside, write_best
from trimtab.stages.outcome import Found, read_outcome

LEVEL = 0.95
RESAMPLES = 2000
FRONT = 5
"""Points of a Pareto front that are evaluated."""
Verdict = Literal["beats", "trades", "ties", "loses"]
VERDICTS: tuple[Verdict, ...] = ("beats", "trades", "ties", "loses")
LOWER = ("kl", "cross_entropy", "tokens")


@dataclass(frozen=True)
class Entry:
    """What was evaluated: the default, the winner, or a further point of the front; scores by test metric.

    `against_default` is paired: the same rows and seeds, the difference of the means.
    """

    name: str
    values: dict[str, Any]
    trial: int | None
    scores: dict[str, Interval] = field(default_factory=dict)
    against_default: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """The comparison on test. `metrics` are test metrics, one for each of the search's; `metric` is the first."""

    seeds: list[int]
    truth_rows: int
    rows: int
    metric: str
    metrics: list[str]
    entries: list[Entry]
    verdict: Verdict
    words: str
    best: str
    report: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Laid:
    """A job on the runner: the outcomes of its test, by NAME; and its report."""

    outcomes: dict[str, list[Artifact]]
    last: Artifact


def concluded(search: Search, found: Sequence[Record], sink: Sink = lambda event: None) -> Final | None:
    """Evaluate winner and default afresh, write final.json and best.yaml; None where no trial came to its end.

    Raises StageError and ResourceError as any run does; what is there already is not run again.
    """
    best = leaders(list(found), search.spec.modes)
    if not best:
        return None
    chosen = front(best, search.spec.modes)[:FRONT] if len(search.spec.metrics) > 1 else best[:1]
    tuned = [Entry("tuned" + f" {i}" * (i > 1), one.told.values, one.number) for i, one in enumerate(chosen, 1)]
    entries = [Entry("default", {}, None), *tuned]
    laid = run_entries(search, entries, sink)
    metrics, scored = _compared(search, entries, laid)
    verdict = min((_verdict(one, metrics) for one in scored[1:]), key=VERDICTS.index)
    search.folder.mkdir(parents=True, exist_ok=True)
    final = Final(
        seeds=list(search.spec.final.seeds),
        truth_rows=search.spec.truth_budget,
        rows=_rows(search, laid),
        metric=metrics[0],
        metrics=metrics,
        entries=scored,
        verdict=verdict,
        words="",
        best=str(write_best(search, chosen[0])),
        report=str(fetched(laid[1].last) / "report.html"),
    )
    final = Final(**{**final.__dict__, "words": words(final)})
    write_aside(search.folder / "final.json", json.dumps(final.as_json(), indent=1, default=str))
    return final


def run_entries(search: Search, entries: Sequence[Entry], sink: Sink) -> list[_Laid]:
    """Lay out all entries' jobs on one runner; run what their tests and the winner's report need."""
    runner = _runner(search.default, sink)
    laid = []
    for entry in entries:
        job = search.job(entry.values, search.spec.final.seeds)
        last = job.pipeline(runner.under(entry.name))
        told = {name: found for (split, name), found in runner.outcomes.items() if split == "test"}
        runner.outcomes.clear()
        laid.append(_Laid(told, last))
    wanted = _test_names(search)
    ends = [artifact for one in laid for name in wanted for artifact in one.outcomes[name]]
    runner.ends = [*ends, laid[1].last]
    missing = {node.artifact.id for node in runner.pending}
    stages = [{"stage_id": n.artifact.id, "label": n.label, "stage": n.artifact.stage} for n in runner.needed]
    sink({"event": "plan", "stages": [one | {"have": one["stage_id"] not in missing} for one in stages]})
    runner.wait()
    return laid


def _runner(job: Job, sink: Sink) -> Any:
    if job.compute.backend == "inline":
        from trimtab.run.local import LocalRunner

        return LocalRunner(job.compute, sink=sink)
    from trimtab.run.on_ray import RayRunner

    return RayRunner(job.compute, sink=sink)


def _test_names(search: Search) -> list[str]:
    """For each of the search's metrics the NAME that tells of the same model on test; each once."""
    runner: PlanRunner = laid_out(search.default)
    return list(dict.fromkeys(on_test(runner, metric.rpartition("/")[0]) for metric in search.spec.metrics))


def _compared(search: Search, entries: Sequence[Entry], laid: Sequence[_Laid]) -> tuple[list[str], list[Entry]]:
    runner = laid_out(search.default)
    told: dict[str, NDArray[np.float64]] = {}
    means: dict[str, NDArray[np.float64]] = {}
    for metric in search.spec.metrics:
        name = on_test(runner, metric.rpartition("/")[0])
        outcomes = [[read_outcome(fetched(artifact)) for artifact in one.outcomes[name]] for one in laid]
        what = _test_what(what_of(runner, metric).final, outcomes[0][0], name)
        if what not in told:
            rows_SNM = paired_rows(outcomes, what)
            means[what] = np.mean([rows_NM.mean(0) for rows_NM in rows_SNM], axis=0)
            told[what] = resample(rows_SNM, np.random.default_rng(0), RESAMPLES, same_rows=_same(outcomes, what))
    scored = []
    for m, entry in enumerate(entries):
        scores = {w: _interval(means[w][m], draws_RM[:, m]) for w, draws_RM in told.items()}
        against = {w: _interval(means[w][m] - means[w][0], d_RM[:, m] - d_RM[:, 0]) for w, d_RM in told.items()}
        scored.append(Entry(entry.name, entry.values, entry.trial, scores, against if m else {}))
    return list(told), scored


def _test_what(wanted: Sequence[str], found: Mapping[str, Any], name: str) -> str:
    """The first of these metrics that is known of test rows. Raises StageError where none is."""
    what = next((what for what in wanted if what in found), None)
    if what is None:
        raise StageError(f"{name} tells no {' or '.join(wanted)} of test rows; it tells {', '.join(found)}")
    return what


def paired_rows(outcomes: Sequence[Sequence[Found]], what: str) -> list[NDArray[np.float64]]:
    """One array (N, M) a seed over the rows that every entry has a value of."""
    tables = []
    for of_seed in zip(*outcomes, strict=True):
        ids = sorted(set.intersection(*(set(found[what]) for found in of_seed)))
        tables.append(np.array([[found[what][row] for found in of_seed] for row in ids], dtype=np.float64))
    return tables


def _same(outcomes: Sequence[Sequence[Found]], what: str) -> bool:
    """Whether all seeds share one test set."""
    return len({tuple(sorted(found[what])) for found in outcomes[0]}) == 1


def _interval(mean: float, draw_R: NDArray[np.float64]) -> Interval:
    return Interval(float(mean), *percentiles(draw_R, LEVEL))


def _rows(search: Search, laid: Sequence[_Laid]) -> int:
    """Test rows of one seed."""
    first = laid[0].outcomes[_test_names(search)[0]][0]
    return max(len(of) for of in read_outcome(fetched(first)).values())


def _verdict(entry: Entry, metrics: Sequence[str]) -> Verdict:
    """beats: surely better in one metric and surely worse in none; loses: the other way round; trades: both."""
    gains = [_signed(entry.against_default[what], what) for what in metrics]
    better, worse = any(lo > 0 for lo, _ in gains), any(hi < 0 for _, hi in gains)
    return "trades" if better and worse else "beats" if better else "loses" if worse else "ties"


def _signed(gain: Interval, what: str) -> tuple[float, float]:
    return (-gain.hi, -gain.lo) if what in LOWER else (gain.lo, gain.hi)


def words(final: Final) -> str:
    """The verdict in plain words, no more than the interval says."""
    tuned = next(e for e in final.entries[1:] if _verdict(e, final.metrics) == final.verdict)
    told = "; ".join(_gain(final.entries[0], tuned, what) for what in final.metrics)
    over = f"{len(final.seeds)} fresh seed{'s' * (len(final.seeds) != 1)}, {final.rows} test rows each"
    head = {
        "beats": f"{tuned.name} beats the untuned default",
        "trades": f"{tuned.name} is better than the untuned default in one thing and worse in another",
        "loses": f"{tuned.name} loses to the untuned default",
        "ties": f"no difference between {tuned.name} and the untuned default can be told",
    }[final.verdict]
    if all(gain.lo == gain.hi == 0 for gain in tuned.against_default.values()):
        head = f"{tuned.name} says of every test row what the untuned default says, so they tie"
    text = f"On test, {head}: {told} ({over})."
    further = len(final.entries) - 2
    return text + f" The best of {further + 1} points of the front is told." * bool(further)


def _gain(default: Entry, tuned: Entry, what: str) -> str:
    gain = tuned.against_default[what]
    return (
        f"{what} {tuned.scores[what].mean:.3f} against {default.scores[what].mean:.3f}, difference {gain.mean:+.3f}, "
        f"{LEVEL:.0%} interval {gain.lo:+.3f} to {gain.hi:+.3f}"
    )

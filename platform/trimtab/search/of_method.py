"""A search without a file: the ranges that a method declares, over the part of a job that is of this kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import JobError
from trimtab.load import load_job, read_yaml
from trimtab.mistakes import Source, nearest
from trimtab.pipelines._base import Pipeline
from trimtab.search.checks import laid_out, names, tells
from trimtab.search.job import Search, made
from trimtab.search.load import Draft, read
from trimtab.search.spec import SearchSpec
from trimtab.spec import Method, Spec

LEARNT_FROM = ("supervisor", "weak_policy", "ceiling", "trained")
"""Parts that are searched only where no student, guide or protocol is of the kind."""
PREFERRED = ("agreement", "gold")


def search_of(path: str | Path, overrides: Sequence[str] = (), *, method: str, smoke: bool = False) -> Search:
    """A search of the ranges that the method's file declares, in the part of the job that is of its kind.

    `method` may also be the part's own dotted place. Raises JobError where there is no such part, or several.
    """
    job = load_job(path)
    place, part = _part(job.pipeline, method)
    if not part.ranges:
        raise JobError([f"{place}: {part.kind} declares no ranges, so write a search file that does"])
    above, _, last = place.rpartition(".")
    swept = {f"{above}.strengths": {}} if last == "guide" and getattr(job.pipeline, "guides", None) else {}
    said = {
        "job": str(path),
        "set": swept,
        "space": {f"{place}.{name}": _prefixed(place, found) for name, found in part.ranges.items()},
        "metric": _metric(Path(path), swept, place),
    }
    draft = Draft(Path(path), f"{Path(path).stem}-{part.kind}", said, Source(f"--method {method}", None))
    return read(draft, [*(["budget.trials=4"] if smoke else []), *overrides])


def _prefixed(place: str, found: Spec) -> dict[str, Any]:
    said = found.model_dump(mode="json")
    return said | {"when": {f"{place}.{name}": wanted for name, wanted in said["when"].items()}}


def parts(value: Any, place: str = "") -> Iterator[tuple[str, Method]]:
    """Every method within a job, by its dotted place."""
    if isinstance(value, Method) and not isinstance(value, Pipeline):
        yield place, value
    if isinstance(value, Spec):
        inner: Mapping[str, Any] = dict(value)
    elif isinstance(value, Mapping):
        inner = value
    else:
        inner = {str(i): one for i, one in enumerate(value)} if isinstance(value, tuple) else {}
    for name, one in inner.items():
        yield from parts(one, f"{place}.{name}" if place else name)


def _part(pipeline: Pipeline, method: str) -> tuple[str, Method]:
    found = dict(parts(pipeline))
    if method in found:
        return method, found[method]
    fits = [place for place, part in found.items() if part.kind == method]
    if not fits:
        kinds = sorted({part.kind for part in found.values()})
        raise JobError(
            [f"--method {method}: no part of the job is of this kind{nearest(method, kinds)}; there: {kinds}"]
        )
    fits = [place for place in fits if place.split(".")[0] not in LEARNT_FROM] or fits
    if len(fits) > 1:
        raise JobError([f"--method {method}: several parts are of this kind; name one: {', '.join(fits)}"])
    return fits[0], found[fits[0]]


def _metric(path: Path, swept: dict[str, Any], place: str) -> str:
    """What tells most of a part without truth, or with little: NAME/WHAT of the student or guide that it is in."""
    raw, _ = read_yaml(path, "job file", "kind")
    default = SearchSpec.model_fields["validation"].default
    job, found = made(raw, swept | {"validation": {"rows": default}}, (0,), name=path.stem)
    runner = laid_out(job) if job else None
    told = names(runner) if runner else {}
    if found or not told:
        raise JobError([f"{path}: {'; '.join(text for _, text in found) or 'no rows to choose by'}"])
    family, _, owner = place.partition(".")
    owner = owner.partition(".")[0]
    wanted = {"students": f"student.{owner}", "guides": f"guided.{owner}"}.get(family, "student.")
    fits = [name for name in told if name == wanted or name.startswith((f"{wanted}.", f"{wanted} "))]
    fits = fits or [name for name in told if name.startswith("student.")] or list(told)
    ranked = [(what, name) for what in PREFERRED for name in fits if what in tells(runner, name)]
    what, name = ranked[0] if ranked else (next(iter(tells(runner, fits[0]))), fits[0])
    return f"{name}/{what}"

"""trimtab check | plan | run | report | data | doctor."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.errors import JobError, TrimtabError

if TYPE_CHECKING:
    from trimtab.verbs import RunResult

app = typer.Typer(
    help="Weak-to-strong alignment on Ray: small models supervise, large ones learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)
JobFile = Annotated[Path, typer.Argument(help="job file, such as jobs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="path.to.field=value", metavar="[OVERRIDE]...")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Storage = Annotated[Path | None, typer.Option(help="storage root; default: TRIMTAB_STORAGE or .trimtab")]


@contextmanager
def told() -> Iterator[None]:
    """Errors that trimtab raises on purpose become one clear message and their exit code."""
    errors = Console(stderr=True, highlight=False)
    try:
        yield
    except JobError as error:
        count = len(error.problems)
        errors.print(Text(f"{count} mistake{'s' * (count != 1)}:", "bold red"))
        for problem in error.problems:
            errors.print(Text(f"  {problem}"), soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except TrimtabError as error:
        errors.print(Text(f"{type(error).__name__}: {error}", "red"), soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        errors.print("stopped; finished stages are kept, and the same command goes on from there")
        raise typer.Exit(130) from None


@app.command()
def check(job: JobFile, overrides: Overrides = None) -> None:
    """Find every mistake of a job file, without running anything."""
    from trimtab import verbs

    with told():
        found = verbs.check(job, overrides or [])
        console.print(f"{job}: fine ({found.pipeline.kind}, backend {found.compute.backend})")


@app.command()
def plan(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show the stages of a job: which are there, which would run, and what they need."""
    from trimtab import verbs
    from trimtab.run.estimate import gib

    with told():
        found = verbs.plan(job, overrides or [])
        if as_json:
            stages = [{"id": s.id, "label": s.label, "stage": s.stage, "have": s.have} for s in found.stages]
            print(json.dumps({"stages": stages, "memory": found.need.memory, "disk": found.need.disk}))
            return
        table = Table("", "stage", "id", "memory", "disk", box=None)
        for stage in found.stages:
            sizes = ["", ""] if stage.have else [gib(stage.need.memory), gib(stage.need.disk)]
            table.add_row("have" if stage.have else "run", Text(stage.label), stage.id, *sizes)
        console.print(table)
        needs = f"about {gib(found.need.memory)} of memory at a time and {gib(found.need.disk)} of disk"
        console.print(
            f"{len(found.to_run)} of {len(found.stages)} stages to run" + f"; they need {needs}" * bool(found.to_run)
        )


@app.command()
def run(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run what is missing of a job, and show what it found."""
    from trimtab import verbs
    from trimtab.display import display

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with told():
        with display(as_json=as_json) as listener:
            result = verbs.run(job, overrides or [], listeners=[listener])
        if as_json:
            done = {"event": "done", "report": str(result.report), "metrics": result.metrics, "run_id": result.run_id}
            print(json.dumps(done | {"ran": result.ran, "warnings": result.warnings}))
        else:
            _show(result, str(job))


def _show(result: RunResult, job: str) -> None:
    from trimtab.run.track import default_uri

    _table(result.table)
    ran = f"{result.ran} stages ran in {result.seconds:.1f} s" if result.ran else "nothing to do: every stage was there"
    console.print(f"{job}: {ran}")
    console.print(Text(f"report:  {result.report}"), soft_wrap=True)
    console.print(Text(f"runs:    mlflow ui --backend-store-uri {default_uri(result.storage)}"), soft_wrap=True)
    for warning in result.warnings:
        console.print(Text(warning, "yellow"), soft_wrap=True)


def _table(rows: list[list[str]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console.print(table)


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="a run; default: the newest")] = None,
    storage: Storage = None,
    sync: Annotated[bool, typer.Option("--sync", help="replay runs into MLflow that it has missed")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's table and report again, or bring MLflow up to date."""
    from trimtab import verbs

    with told():
        if sync:
            for done in verbs.sync(run_id, storage):
                console.print(
                    Text(f"{done.run_id}: {done.problem or f'{done.events} events replayed'}"), soft_wrap=True
                )
            return
        found = verbs.report(run_id, storage)
        if as_json:
            print(
                json.dumps(
                    {
                        "run_id": found.run_id,
                        "status": found.status,
                        "report": str(found.report),
                        "metrics": found.metrics,
                    }
                )
            )
            return
        _table(found.table)
        console.print(Text(f"run:     {found.run_id} ({found.status})\nreport:  {found.report}"), soft_wrap=True)


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="builtin:NAME, a file, a folder, or a hub id")],
    options: Annotated[list[str] | None, typer.Argument(help="task fields, such as columns.text=body")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="write the rows that cannot be used to this file")] = None,
) -> None:
    """Show how a data set is read: format, rows, balance, lengths, duplicates, rows that cannot be used."""
    from trimtab import verbs
    from trimtab.data.doctor import render, write_quarantine
    from trimtab.load import nested

    with told():
        found = verbs.data(source, **nested(options or []))
        console.print(Text(render(found)))
        if quarantine:
            write_quarantine(found.rejected, quarantine)
            console.print(f"{len(found.rejected)} rows written to {quarantine}")


@app.command()
def doctor(storage: Storage = None, as_json: Json = False) -> None:
    """Print what a bug report needs: versions, devices, cores, memory, disk, Ray."""
    from trimtab import verbs

    found: dict[str, Any] = verbs.doctor(storage)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        console.print(Text(f"{name:<14} {value}"), soft_wrap=True)


def main() -> None:
    sys.exit(app())

"""trimtab check | plan | run | serve | report | data | doctor."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.errors import JobError, TrimtabError

if TYPE_CHECKING:
    from trimtab.verbs import RunResult

HELP = """Weak-to-strong alignment on Ray: small models supervise, large ones learn.

Exit codes: 0 done; 1 a stage failed; 2 the job, data, model or machine does not allow it; 130 stopped (Ctrl-C,\
 SIGTERM, of a run also SIGHUP). Finished stages are kept whatever happens, and the same command goes on from there.
"""
STOPPED = "stopped; finished stages are kept, and the same command goes on from there"
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
WIDE = 160
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
JobFile = Annotated[Path, typer.Argument(help="job file, such as jobs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="path.to.field=value", metavar="[OVERRIDE]...")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; the last line says done or error")]
Storage = Annotated[Path | None, typer.Option(help="storage root; default: TRIMTAB_STORAGE or .trimtab")]


@contextmanager
def told(*, as_json: bool = False) -> Iterator[None]:
    """Errors that trimtab raises on purpose, and a stop, become one clear message and their exit code."""
    try:
        yield
    except (TrimtabError, KeyboardInterrupt) as error:
        _tell(error, as_json=as_json)
        raise typer.Exit(error.exit_code if isinstance(error, TrimtabError) else 130) from None
    except OSError as error:
        if as_json:
            print(json.dumps(_as_event(error)), flush=True)
        if error.errno not in REFUSED:
            raise
        of = f": {error.filename}" if error.filename else ""
        Console(stderr=True, highlight=False).print(Text(f"{error.strerror}{of}", "red"), soft_wrap=True)
        raise typer.Exit(2) from None
    except Exception as error:
        if as_json:
            print(json.dumps(_as_event(error)), flush=True)
        raise


def _tell(error: BaseException, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_event(error)), flush=True)
    Console(stderr=True, highlight=False).print(_in_words(error), soft_wrap=True)


def _as_event(error: BaseException) -> dict[str, object]:
    said = {"event": "error", "type": type(error).__name__, "message": str(error) or STOPPED}
    return said | ({"problems": error.problems} if isinstance(error, JobError) else {})


def _in_words(error: BaseException) -> Text:
    if isinstance(error, JobError):
        count = len(error.problems)
        head = Text(f"{count} mistake{'s' * (count != 1)}:", "bold red")
        return head.append("".join(f"\n  {problem}" for problem in error.problems), "not bold default")
    return Text(f"{type(error).__name__}: {error}", "red") if isinstance(error, TrimtabError) else Text(STOPPED)


@app.command()
def check(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find every mistake of a job file, without running anything."""
    with told(as_json=as_json):
        from trimtab import verbs

        found = verbs.check(job, overrides or [])
        if as_json:
            print(json.dumps({"event": "done", "name": found.name, "kind": found.pipeline.kind}))
        else:
            console.print(f"{job}: fine ({found.pipeline.kind}, backend {found.compute.backend})", soft_wrap=True)


@app.command()
def plan(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show the stages of a job: which are there, which would run, and what they need."""
    with told(as_json=as_json):
        from trimtab import verbs
        from trimtab.run.estimate import gib

        found = verbs.plan(job, overrides or [])
        if as_json:
            stages = [{"id": s.id, "label": s.label, "stage": s.stage, "have": s.have} for s in found.stages]
            print(json.dumps({"stages": stages, "memory": found.need.memory, "disk": found.need.disk}))
            return
        rows = [["", "stage", "id", "memory", "disk"]]
        for stage in found.stages:
            sizes = ["", ""] if stage.have else [gib(stage.need.memory), gib(stage.need.disk)]
            rows.append(["have" if stage.have else "run", stage.label, stage.id, *sizes])
        _table(rows)
        needs = f"about {gib(found.need.memory)} of memory at a time and {gib(found.need.disk)} of disk"
        need = f"; they need {needs}" * bool(found.to_run)
        console.print(f"{len(found.to_run)} of {len(found.stages)} stages to run{need}", soft_wrap=True)


@app.command()
def run(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run what is missing of a job, and show what it found."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    with told(as_json=as_json):
        from trimtab import verbs
        from trimtab.display import display

        with display(as_json=as_json) as listener:
            result = verbs.run(job, overrides or [], listeners=[listener])
        if as_json:
            done = {"event": "done", "report": str(result.report), "metrics": result.metrics, "run_id": result.run_id}
            print(json.dumps(done | {"ran": result.ran, "warnings": result.warnings, "registered": result.registered}))
        else:
            _show(result, str(job))


def _show(result: RunResult, job: str) -> None:
    from trimtab.run.track import default_uri
    from trimtab.run.track_words import without_password

    _table(result.table)
    ran = f"{result.ran} stages ran in {result.seconds:.1f} s" if result.ran else "nothing to do: every stage was there"
    _say(f"{job}: {ran}")
    _say(f"report:  {result.report}")
    _say(f"runs:    mlflow ui --backend-store-uri {without_password(default_uri(result.storage))}")
    for version in result.registered:
        _say(f"model:   {version}")
    for warning in result.warnings:
        _say(warning, "yellow")


def _say(text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)


def _table(rows: list[list[str]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console.print(table)


@app.command()
def serve(
    file: Annotated[Path, typer.Argument(help="serve file, such as serve/guided.yaml")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Serve models and ensembles of them behind an OpenAI-shaped API, until stopped.

    SIGHUP reads FILE again and looks the aliases of registered models up again: new versions are loaded beside what
    runs, which finishes what it is at. What is wrong with the file is told, and what runs goes on.
    """
    with told(as_json=as_json):
        from trimtab import verbs

        with verbs.serve(file, overrides or []) as found, suppress(KeyboardInterrupt):
            ready, refused = lambda: _say(found.greeting(as_json=as_json)), partial(_tell, as_json=as_json)
            found.until_stopped(ready, refused)


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="a run; default: the newest")] = None,
    storage: Storage = None,
    sync: Annotated[bool, typer.Option("--sync", help="replay runs into MLflow that it has missed")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's table and report again, or bring MLflow up to date."""
    with told(as_json=as_json):
        from trimtab import verbs

        if sync:
            synced = verbs.sync(run_id, storage)
            for done in synced:
                said = {"event": "synced", "run_id": done.run_id, "events": done.events, "problem": done.problem}
                text = f"{done.run_id}: {done.problem or f'{done.events} events replayed'}"
                print(json.dumps(said)) if as_json else _say(text)
            if any(done.problem for done in synced):
                raise typer.Exit(1)
            return
        found = verbs.report(run_id, storage)
        if as_json:
            page = str(found.report) if found.report else None
            print(
                json.dumps({"run_id": found.run_id, "status": found.status, "report": page, "metrics": found.metrics})
            )
            return
        _table(found.table)
        _say(f"run:     {found.run_id} ({found.status})\nreport:  {found.report or 'none'}")


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="builtin:NAME, a file, a folder, or a hub id")],
    options: Annotated[list[str] | None, typer.Argument(help="fields of a task or prompts: columns.text=body")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="write the rows that cannot be used to this file")] = None,
    model: Annotated[str | None, typer.Option(help="show prompts and answers as this model sees them")] = None,
) -> None:
    """Show how a data set is read: format, rows, balance, lengths, duplicates, rows that cannot be used."""
    with told():
        from trimtab import verbs
        from trimtab.data.doctor import DataReport, render
        from trimtab.data.prompt_doctor import render_prompts

        found = verbs.data(source, options or [], quarantine=quarantine, model=model)
        _say(render(found) if isinstance(found, DataReport) else render_prompts(found))
        if model and isinstance(found, DataReport):
            _say("--model shows prompts and answers; these are labelled texts", "yellow")
        if quarantine:
            _say(f"{found.n_rejected} rows written to {quarantine}")


@app.command()
def doctor(storage: Storage = None, as_json: Json = False) -> None:
    """Print what a bug report needs: versions, devices, cores, memory, disk, Ray."""
    with told(as_json=as_json):
        from trimtab import verbs

        found = verbs.doctor(storage)
        if as_json:
            print(json.dumps(found))
            return
        for name, value in found.items():
            _say(f"{name:<14} {value}")


def main() -> None:
    sys.exit(app())

"""trimtab check | plan | run | submit | tune | serve | report | dashboard | data | doctor."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli_submit import submit
from trimtab.endings import stoppable, tell, told
from trimtab.printing import console, say, table

if TYPE_CHECKING:
    from trimtab.verbs import RunResult

HELP = """Weak-to-strong alignment on Ray: small models supervise, large ones learn.

Exit codes: 0 done; 1 a stage failed; 2 the job, data, model or machine does not allow it; 130 stopped by\
 Ctrl-C or SIGTERM (run, tune and submit also by SIGHUP; serve and dashboard then end with 0). Finished stages are kept\
 whatever happens, and the same command goes on from there.
"""
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
JobFile = Annotated[Path, typer.Argument(help="job file, such as jobs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="path.to.field=value", metavar="[OVERRIDE]...")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; a mistake ends it with an error")]
Storage = Annotated[str | None, typer.Option(help="storage: folder or URL; default: TRIMTAB_STORAGE or .trimtab")]


@app.command()
def check(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find every mistake of a job file or a search file, without running anything."""
    with told(as_json=as_json):
        from trimtab import verbs

        if verbs.is_search(job):
            search = verbs.search(job, overrides or [])
            said = json.dumps({"event": "done", "name": search.name, "kind": "search", "id": search.id})
            return print(said) if as_json else say(f"{job}: fine (search {search.id} of {search.spec.job})")
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
        table(rows)
        needs = f"about {gib(found.need.memory)} of memory at a time and {gib(found.need.disk)} of disk"
        need = f"; they need {needs}" * bool(found.to_run)
        console.print(f"{len(found.to_run)} of {len(found.stages)} stages to run{need}", soft_wrap=True)


@app.command()
def run(job: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run what is missing of a job, and show what it found; the same TRIMTAB_RUN_ID goes on with the same run."""
    stoppable()
    with told(as_json=as_json):
        from trimtab import verbs
        from trimtab.display import display

        with display(as_json=as_json) as listener:
            result = verbs.run(job, overrides or [], listeners=[listener])
        if as_json:
            done = {"event": "done", "report": str(result.report), "metrics": result.metrics, "run_id": result.run_id}
            done |= {"ran": result.ran, "warnings": result.warnings, "registered": result.registered}
            print(json.dumps(done | {"table": result.table}))
        else:
            _show(result, str(job))


app.command()(submit)


@app.command()
def tune(
    file: Annotated[Path, typer.Argument(help="search file, such as tune/logconf.yaml; a job file with --method")],
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(help="search the ranges this method declares, in a job file")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="a trial run: what the file says of one")] = False,
    as_json: Json = False,
) -> None:
    """Search a job's hyperparameters, then compare the best with the default on test. The same command goes on."""
    stoppable()
    with told(as_json=as_json):
        from trimtab import verbs
        from trimtab.search_display import display_of
        from trimtab.search_ending import as_event, ending

        found = verbs.search(file, overrides or [], method=method, smoke=smoke)
        with display_of(found, as_json=as_json) as listener:
            result = verbs.tune(found, listeners=[listener])
        if as_json:
            print(json.dumps(as_event(result), default=str))
        else:
            table(result.table)
            say("\n".join([*ending(result, str(file)), *result.warnings]))
        if result.gave_up:
            raise typer.Exit(1)


def _show(result: RunResult, job: str) -> None:
    from trimtab.run.track import default_uri
    from trimtab.run.track_words import without_password

    table(result.table)
    ran = f"{result.ran} stages ran in {result.seconds:.1f} s" if result.ran else "nothing to do: every stage was there"
    say(f"{job}: {ran}")
    say(f"report:  {result.report}")
    say(f"runs:    mlflow ui --backend-store-uri {without_password(default_uri(result.storage))}")
    for version in result.registered:
        say(f"model:   {version}")
    for warning in result.warnings:
        say(warning, "yellow")


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
            ready, refused = lambda: say(found.greeting(as_json=as_json)), partial(tell, as_json=as_json)
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
                print(json.dumps(said)) if as_json else say(text)
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
        table(found.table)
        say(f"run:     {found.run_id} ({found.status})\nreport:  {found.report or 'none'}")


@app.command()
def dashboard(storage: Storage = None) -> None:
    """Open what there is to look at: optuna-dashboard, MLflow, Ray's dashboard, pages of searches; until stopped."""
    stoppable()
    with told():
        from trimtab.compute import place
        from trimtab.search.dashboards import dashboards

        with suppress(KeyboardInterrupt), dashboards(place(storage).storage) as shown:
            for name, what in shown.lines:
                say(f"{name:<8} {what}")
            shown.wait()


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
        say(render(found) if isinstance(found, DataReport) else render_prompts(found))
        if model and isinstance(found, DataReport):
            say("--model shows prompts and answers; these are labelled texts", "yellow")
        if quarantine:
            say(f"{found.n_rejected} rows written to {quarantine}")


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
            say(f"{name:<14} {value}")


def main() -> None:
    sys.exit(app())

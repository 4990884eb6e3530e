"""trimtab submit: a job or search on a cluster elsewhere, shown as if it ran here."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from trimtab.endings import stoppable, told
from trimtab.errors import JobError
from trimtab.printing import say, table

if TYPE_CHECKING:
    from trimtab.cluster.connection import Cluster
    from trimtab.cluster.follow import Ending
    from trimtab.cluster.submission import Read, Submission
    from trimtab.run.log import Listener

notes = Console(stderr=True, highlight=False)


def submit(
    job: Annotated[Path | None, typer.Argument(help="job or search file; with --follow only for the display")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="path.to.field=value", metavar="[OVERRIDE]...")] = None,
    *,
    address: Annotated[str | None, typer.Option(help="the head's dashboard, such as http://head:8265")] = None,
    follow: Annotated[str | None, typer.Option(metavar="ID", help="show a job that was sent before")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would travel; send nothing")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the job")] = False,
    shared: Annotated[list[Path] | None, typer.Option(help="a folder that all nodes reach under this path")] = None,
    installed: Annotated[bool, typer.Option("--installed", help="use the cluster's trimtab; send no code")] = False,
    grows: Annotated[bool, typer.Option("--grows", help="an autoscaler adds the nodes that are missing now")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="a trial run of a search")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, the job's own events")] = False,
) -> None:
    """Run a job or search on a Ray cluster: check it here, send code and file, show its stages, return its exit code.

    The address may also stand in RAY_API_SERVER_ADDRESS, the cluster's token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    Ctrl-C lets go of the job, which runs on. A job that is under way already is followed.
    """
    stoppable()
    with told(as_json=as_json):
        if job is None and follow is None:
            raise JobError(["give a job or search file, or --follow ID"])
        from trimtab.cluster.submission import prepared, read

        found = read(job, [*(overrides or []), *["compute.grows=true"] * grows], smoke=smoke) if job else None
        sent = None
        if found and not follow:
            sent = prepared(found, shared=shared or (), installed=installed, smoke=smoke)
        if dry_run and sent:
            return _dry(sent)
        from trimtab.cluster.connection import Cluster

        cluster = Cluster(address)
        name = follow or _sent(cluster, sent)
        ended = None if detach else _followed(cluster, name, found, as_json=as_json)
    if ended is None:
        _note(ways(name, cluster))
        raise typer.Exit(0 if detach else 130)
    _show(ended, as_json=as_json)
    raise typer.Exit(ended.code)


def ways(job: str, cluster: Cluster) -> str:
    """How to go on with a job that nobody follows."""
    mode = "" if cluster.open else "RAY_AUTH_MODE=token "
    return (
        f"{job} runs on. To follow it:  trimtab submit --follow {job} --address {cluster.address}\n"
        f"To stop it:  {mode}ray job stop {job} --address {cluster.address}"
    )


def _dry(sent: Submission) -> None:
    from trimtab.cluster.verb import described

    print(json.dumps(described(sent), indent=2))


def _sent(cluster: Cluster, sent: Submission) -> str:
    """The job's id on the cluster, where it is sent if it is not under way."""
    from trimtab.cluster.parcel import mib
    from trimtab.cluster.verb import examined, submit, under_way

    if cluster.open:
        _note(f"{cluster.address} asks for no token: whoever reaches it can run code there", "yellow")
    if running := under_way(cluster.jobs(), sent):
        _note(f"{running}: this very job is under way there; it is followed and not sent again", "yellow")
        return running
    _note(f"{cluster.address}: {examined(cluster, sent)}")
    done = submit(cluster, sent)
    size = mib(sent.parcel.size + (sent.code.size if sent.code else 0))
    _note(f"{done.job}: under way already" if done.found else f"{done.job}: sent, {size}")
    return done.job


def _followed(cluster: Cluster, job: str, found: Read | None, *, as_json: bool) -> Ending | None:
    """How the job ended; None where we let go of it."""
    from trimtab.cluster.follow import Log, follow

    if found is None and (cluster.info(job).metadata or {}).get("kind") == "tune":
        _note(f"{job} is a search: its trials are shown where its file is given, trimtab submit FILE --follow {job}")
    try:
        with _display(found, as_json=as_json) as listener:
            printed = _beside(listener)
            lost = lambda why: printed(f"connection lost ({why}); trying again, the job is not touched")  # noqa: E731
            return follow(cluster, job, Log(listener, printed), lost=lost)
    except KeyboardInterrupt:
        return None


def _display(found: Read | None, *, as_json: bool) -> AbstractContextManager[Listener]:
    if found and found.search:
        from trimtab.search_display import display_of

        return display_of(found.search, as_json=as_json)
    from trimtab.display import display

    return display(as_json=as_json)


def _beside(listener: Any) -> Any:
    """Prints a line that is no event: above a live screen, else to stderr."""
    screen: Console | None = getattr(listener, "console", None)
    if screen:
        return lambda line: screen.print(Text(line), soft_wrap=True)
    return lambda line: print(line, file=sys.stderr, flush=True)


def _show(ended: Ending, *, as_json: bool) -> None:
    last = ended.last or {}
    if not as_json and last.get("event") == "done":
        table(last.get("table") or [])
        for name in ("words", "best", "report"):
            if told_ := (last.get("final") or {}).get(name) or last.get(name):
                say(f"{name + ':':<8} {told_}")
        for warning in last.get("warnings") or ():
            say(warning, "yellow")
    _note(f"{ended.job}: exit code {ended.code}; {ended.message}", "" if ended.code == 0 else "red")


def _note(text: str, style: str = "") -> None:
    notes.print(Text(text, style), soft_wrap=True)

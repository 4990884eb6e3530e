"""How a command ends that could not do what it was asked: one clear message, and an exit code."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from trimtab.errors import JobError, TrimtabError

STOPPED = "stopped; finished stages are kept, and the same command goes on from there"
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def stoppable() -> None:
    """SIGTERM and SIGHUP stop us as Ctrl-C does, but for what whoever started us has us ignore, as nohup does."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, signal.default_int_handler)


@contextmanager
def told(*, as_json: bool = False) -> Iterator[None]:
    """Errors that trimtab raises on purpose, and a stop, become one clear message and their exit code."""
    try:
        yield
    except (TrimtabError, KeyboardInterrupt) as error:
        tell(error, as_json=as_json)
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


def tell(error: BaseException, *, as_json: bool) -> None:
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

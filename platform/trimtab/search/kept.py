"""Keeps a command for as long as standard input stays open: python -m trimtab.search.kept COMMAND...

Whoever started this may be killed in any way: its end of the pipe closes then, and the command ends with all that it
started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE = 5.0


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask the command's whole group to stop, and kill what does not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        end(child)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    end(child)
    return code


if __name__ == "__main__":
    sys.exit(main())

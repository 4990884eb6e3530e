"""Exact versions of what a result was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("trimtab", "torch", "ray", "deepspeed", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow")


def versions() -> dict[str, str]:
    """Python, the machine, and every library that a result can depend on; 'absent' where one is not installed."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with '+' when it has changes; None elsewhere."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None

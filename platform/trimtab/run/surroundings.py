"""What trimtab runs in, for a bug report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trimtab.run.estimate import machine
from trimtab.run.track import default_uri
from trimtab.run.track_words import without_password
from trimtab.versions import commit, versions


def surroundings(storage: Path) -> dict[str, str]:
    """Versions, devices, cores, memory, disk, Ray's address, compilers, the tracking server."""
    found = versions() | {"commit": commit() or "not a checkout"} | machine(storage)
    found["ray address"] = os.environ.get("RAY_ADDRESS", "none set; a run starts its own")
    found["compiler"] = " and ".join(filter(None, [shutil.which("g++"), shutil.which("ninja")])) or "no g++ or ninja"
    found["mlflow"] = f"{found['mlflow']} at {without_password(default_uri(storage))}"
    return found

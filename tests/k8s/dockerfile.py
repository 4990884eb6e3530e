"""Dockerfiles, as far as tests ask: instructions, what is copied, where to."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

KNOWN = ("ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR")


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments, lines that go on joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ")[::2] for line in whole.splitlines() if line.strip()]
    assert all(name in KNOWN for name, _ in found), found
    return found


def copied(text: str) -> dict[str, PurePosixPath]:
    """What the last stage copies from the context, by the place where it then is."""
    found, folder, stage = {}, PurePosixPath("/"), ""
    for name, rest in instructions(text):
        if name == "FROM":
            stage = rest
        elif name == "WORKDIR":
            folder = PurePosixPath(rest)
        elif name == "COPY":
            *sources, place = rest.split()
            for source in sources:
                found[source] = folder / (PurePosixPath(source).name if place.endswith("/") else place)
    assert stage.endswith("AS image"), "the last stage is the image"
    return found

"""A checkpoint of the first rank's node, for nodes that share no files with it: sent over the group."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import nullcontext
from pathlib import Path

from trimtab.training.checkpoint import MANIFEST, Stored
from trimtab.training.world import world

CHUNK_BYTES = 2**26


def lent(folder: Path) -> Stored:
    """What is stored in a folder of the first rank's; every rank calls. A copy goes once all have it open."""
    ranks = world()
    manifest = ranks.told((folder / MANIFEST).read_text() if ranks.first else "")
    copy = folder.with_name(ranks.told(f".{folder.name}.{uuid.uuid4().hex[:8]}"))
    lacks = not (folder / MANIFEST).exists() or (folder / MANIFEST).read_text() != manifest
    if not any(ranks.gather(lacks)):
        return Stored(folder)
    writes = lacks and _made(copy)
    for name, written in json.loads(manifest)["files"].items():
        _send(folder / name, copy / name if writes else None, size=written["bytes"])
    if writes:
        (copy / MANIFEST).write_text(manifest)
    ranks.gather(None)
    stored = Stored(copy if lacks else folder)
    ranks.gather(None)
    if writes:
        shutil.rmtree(copy)
    return stored


def _made(folder: Path) -> bool:
    """Whether this rank, and no other of its node, has made a folder."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _send(file: Path, copy: Path | None, *, size: int) -> None:
    """The first rank's file to all; into a copy where one is named."""
    ranks = world()
    source = file.open("rb") if ranks.first else nullcontext()
    with source as read, copy.open("wb") if copy else nullcontext() as write:
        for _ in range(0, size, CHUNK_BYTES):
            chunk = ranks.told(read.read(CHUNK_BYTES) if read else b"")
            if write:
                write.write(chunk)

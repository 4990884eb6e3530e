"""A storage that fails on demand: files of this machine below faulty://, and what a test has said about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

WRITES = "TEST_FAULTY_WRITES"
"""How many files are written before the process dies."""


class Faulty(LocalFileSystem):
    """Where the file DOWN lies in a folder above, nothing can be read or written; the process may die while writing."""

    protocol = "faulty"
    cachable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(auto_mkdir=True, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        _written(rpath)
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        _written(path)
        super().pipe_file(path, value, **kwargs)

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        _up(path)
        return super().cat_file(path, **kwargs)


def _up(path: str) -> None:
    if any((above / "DOWN").exists() for above in Path(path).parents):
        raise ConnectionError("the storage is down")


def _written(path: str) -> None:
    _up(path)
    if WRITES in os.environ:
        os.environ[WRITES] = str(int(os.environ[WRITES]) - 1)
        if int(os.environ[WRITES]) < 0:
            os._exit(9)


fsspec.register_implementation("faulty", Faulty, clobber=True)

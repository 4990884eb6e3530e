"""Files below a URL, through fsspec. Credentials come from the environment, or from fsspec's own configuration."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trimtab.errors import ResourceError


@dataclass(frozen=True)
class Store:
    """Files below a URL, by their names below it. Raises ResourceError where it cannot be reached, or refuses."""

    url: str
    fs: Any
    root: str

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of those that there are, read side by side."""
        at = {self._at(name): name for name in names}
        with _reaching(self.url):
            found = self.fs.cat(list(at), on_error="return") if at else {}
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {at[path]: content for path, content in found.items() if isinstance(content, bytes)}

    def sizes(self, under: str) -> dict[str, int]:
        """Files below a folder, and how long they are."""
        base = f"{self._at(under)}/"
        with _reaching(self.url), suppress(FileNotFoundError):
            self.fs.invalidate_cache()
            found = self.fs.find(base, detail=True)
            return {path.removeprefix(base): info["size"] for path, info in found.items()}
        return {}

    def write(self, name: str, content: bytes, mode: str = "overwrite") -> None:
        with _reaching(self.url):
            self.fs.pipe_file(self._at(name), content, mode=mode)

    def create(self, name: str, content: bytes) -> bytes:
        """Write a file unless there is one, as far as the store can tell; what is there then."""
        try:
            self.write(name, content, mode="create")
        except ResourceError as error:
            cause = error.__cause__
            unknown = isinstance(cause, NotImplementedError) or getattr(cause, "errno", None) == errno.ENOSYS
            if not isinstance(cause, FileExistsError) and not unknown:
                raise
            if unknown:
                self.write(name, content)
        return self.read([name]).get(name, content)

    def put(self, files: Mapping[str, Path]) -> None:
        if files:
            from trimtab.run.moving import Moving

            here, there = [str(path) for path in files.values()], [self._at(name) for name in files]
            with _reaching(self.url):
                self.fs.put(here, there, callback=Moving(f"pushing to {self.url}"))

    def get(self, files: Mapping[str, Path]) -> None:
        """Copies here. Raises ResourceError for a name that leads out of the folder it is in."""
        for name, path in files.items():
            if ".." in name.split("/") or "//" in name:
                raise ResourceError(f"storage {self.url}: {name!r} is no name of a file that trimtab wrote")
            path.parent.mkdir(parents=True, exist_ok=True)
        if files:
            from trimtab.run.moving import Moving

            here, there = [str(path) for path in files.values()], [self._at(name) for name in files]
            with _reaching(self.url):
                self.fs.get(there, here, callback=Moving(f"fetching from {self.url}"))

    def remove(self, under: str) -> None:
        with _reaching(self.url), suppress(FileNotFoundError):
            self.fs.rm(self._at(under), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Whatever a store raises, in words."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        way = {
            PermissionError: "check the credentials in the environment and what they allow",
            FileNotFoundError: "check that the bucket or folder is there",
        }.get(type(error), "check that it can be reached from here, and the credentials in the environment")
        raise ResourceError(f"storage {url}: {type(error).__name__}: {told or 'it refused'}; {way}") from error


@lru_cache
def store_of(url: str) -> Store:
    """The store below a URL. Raises ResourceError."""
    if text := problem(url):
        raise ResourceError(text)
    import fsspec

    scheme = url.partition("://")[0]
    with _reaching(url):
        fs, root = fsspec.url_to_fs(url, **({"auto_mkdir": True} if scheme in ("file", "local") else {}))
    return Store(url, fs, root.rstrip("/"))


def problem(url: str | None) -> str | None:
    """What can be seen to be wrong with a storage's URL without reaching it."""
    if url is None:
        return None
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0]
    if scheme not in known_implementations and scheme not in registry:
        return f"unknown kind of storage {scheme}://; fsspec knows {', '.join(sorted(known_implementations))}"
    package = known_implementations.get(scheme, {"class": "fsspec"})["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"{scheme}:// needs the package {package}: pip install {package}"
    return None

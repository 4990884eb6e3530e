"""Members of ensembles that a registry names: looked up when an application is built, the same for all its replicas."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import JobError, ModelError
from trimtab.mistakes import Mistake
from trimtab.models.source import split_source
from trimtab.run.registry import Registry

if TYPE_CHECKING:
    from trimtab.serving.config import GuidedArgs, Member


@dataclass(frozen=True)
class Origin:
    """A source as it was written, and the version that it meant: `models:/NAME/VERSION`."""

    source: str
    version: str


Origins = Mapping[str, Origin]


def settled(
    models: "Mapping[str, Member]", storage: Path, *, fetch: bool = False
) -> "tuple[dict[str, Member], list[Mistake]]":
    """Members with folders in the place of registered models, and what cannot be found.

    One that has to be downloaded first is left out of both, unless `fetch`.
    """
    registry, found, mistakes = Registry(storage), dict(models), []
    for name, source in _registered(models):
        try:
            folder = registry.version(source).folder(registry.cache)
            if fetch or folder.exists():
                found[name] = _placed(models[name], registry.folder(source))
        except ModelError as error:
            mistakes.append((("models", name, "source"), str(error)))
    return found, mistakes


def bound(args: "GuidedArgs") -> "tuple[GuidedArgs, dict[str, Origin]]":
    """The arguments with the folders that aliases mean now, there or still to be downloaded. Raises JobError."""
    registry, models, origins = Registry(args.storage), dict(args.models), {}
    for name, source in _registered(args.models):
        try:
            version = registry.version(source)
        except ModelError as error:
            raise JobError([f"models.{name}.source: {error}"]) from error
        models[name] = _placed(args.models[name], version.folder(registry.cache))
        origins[name] = Origin(source, version.source)
    return args.model_copy(update={"models": models}), origins


def revision(args: "GuidedArgs") -> str:
    """What aliases mean now, after the text that the file has for it: it changes when one of them was moved."""
    _, origins = bound(args)
    return " ".join([args.revision, *(f"{name}={origins[name].version}" for name in sorted(origins))]).strip()


def download(args: "GuidedArgs", ensemble: str, origins: Origins) -> None:
    """Get what an ensemble needs and this machine lacks. Raises ModelError."""
    registry = Registry(args.storage)
    for name, member in args.specs(ensemble).items():
        if name in origins and not Path(member.source).exists():
            registry.folder(origins[name].version)


def _registered(models: "Mapping[str, Member]") -> list[tuple[str, str]]:
    return [(name, one.source) for name, one in models.items() if split_source(one.source)[0] == "registry"]


def _placed(member: "Member", folder: Path) -> "Member":
    return member.model_copy(update={"source": str(folder)})

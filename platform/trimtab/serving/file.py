"""A serve file: Ray Serve's own configuration, in which an application of ours carries our arguments.

The same file goes to `trimtab serve`, `serve run`, `serve deploy` and a RayService. Ray ignores keys that it does not
know; here they are mistakes.
"""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trimtab.errors import JobError
from trimtab.load import override, read_yaml, validated
from trimtab.mistakes import Loc, Mistake, nearest
from trimtab.serving.checks import mistakes, sound
from trimtab.serving.config import INGRESS, GuidedArgs

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

BUILD = "trimtab.serving.app:build"


@dataclass(frozen=True)
class ServeFile:
    """What a serve file says: all that Serve is to do, and the arguments of each application of ours."""

    config: "ServeDeploySchema"
    args: dict[str, GuidedArgs]

    @property
    def url(self) -> str:
        """Where the first application of ours answers, seen from this machine."""
        first = next(one for one in self.config.applications if one.name in self.args)
        host = self.config.http_options.host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        path = self.config.http_options.root_path + (first.route_prefix or "")
        return f"http://{host}:{self.config.http_options.port}{path}".rstrip("/")


def load_serve(path: str | Path, overrides: Sequence[str] = ()) -> ServeFile:
    """Read a serve file. Raises JobError with every mistake: place, what is wrong, what is allowed, nearest name."""
    from ray.serve.schema import ServeDeploySchema

    raw, source = read_yaml(Path(path), "serve file", "applications")
    problems = [problem for text in overrides for problem in override(raw, text, source)]
    config, found = validated(ServeDeploySchema, raw, ())
    found += unknown(ServeDeploySchema, raw, ())
    args, applications = {}, raw.get("applications")
    for i, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, dict) and application.get("import_path") == BUILD:
            loc: Loc = ("applications", i)
            given = application.get("args") or {}
            own, more = validated(GuidedArgs, given, (*loc, "args"))
            right, broken = sound(given)
            found += [*more, *(((*loc, "args", *at), text) for at, text in mistakes(own or right, broken))]
            found += _deployments(application.get("deployments"), given, loc)
            args[str(application.get("name", "default"))] = own
    if problems or found:
        raise JobError(problems + source.told(found))
    if not args:
        raise JobError([f"{path}: no application has import_path: {BUILD}"])
    return _settled(ServeFile(config, args))


def _settled(file: ServeFile) -> ServeFile:
    """With storage folders that are the same from everywhere."""
    for application in file.config.applications:
        if own := file.args.get(application.name):
            application.args["storage"] = str(own.storage.expanduser().resolve())
    return file


def _deployments(raw: Any, args: Any, loc: Loc) -> Iterator[Mistake]:
    parts = [args.get(key) for key in ("ensembles", "debates")] if isinstance(args, dict) else []
    names = [INGRESS, *(name for part in parts if isinstance(part, dict) for name in part)]
    for i, deployment in enumerate(raw if isinstance(raw, list) else ()):
        name = deployment.get("name") if isinstance(deployment, dict) else None
        if name not in names:
            text = f"no deployment {name!r}{nearest(name, names)}; there: {', '.join(map(str, names))}"
            yield (*loc, "deployments", i, "name"), text


def unknown(annotation: Any, node: Any, loc: Loc) -> Iterator[Mistake]:
    """Keys that no model of Serve's schema has."""
    models = list(_models(annotation))
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from unknown(annotation, item, (*loc, i))
    elif isinstance(node, dict) and models:
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        for key, value in node.items():
            if key not in fields:
                yield (*loc, key), f"unknown key{nearest(key, fields)}; allowed: {', '.join(fields)}"
            else:
                yield from unknown(fields[key].annotation, value, (*loc, key))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)

"""The API on Ray Serve: one deployment that takes requests, and one for every ensemble.

No `from __future__ import annotations` in this package: with it Serve does not see the type of the builder's argument.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from trimtab.serving.answer import Event, Refusal, Refused, Request, State
from trimtab.serving.checks import checked
from trimtab.serving.config import INGRESS, GuidedArgs
from trimtab.serving.registered import bound
from trimtab.serving.replica import EnsembleReplica

PATIENCE_S = 5
"""Seconds in which an ensemble has to say how it stands."""
MANY = 1000
"""Requests that a replica may have at once: fewer are let in, by the ingress itself."""


class Remote:
    """An ensemble behind a Serve handle."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self.name, self.handle, self.stream = name, handle, handle.options(stream=True)

    async def answer(self, request: Request) -> AsyncIterator[tuple[Event, ...]]:
        """`Opened`, then pieces. Raises Refused where no replica takes it, or the one that did is lost."""
        events = self.stream.answer.remote(request)
        try:
            async for batch in events:
                yield batch
        except BackPressureError as error:
            raise Refused(429, f"too many requests for {self.name}", code="rate_limit_exceeded") from error
        except (RayActorError, RayServeException) as error:
            said = f"the replica of {self.name} that answered is gone; try again"
            raise Refused(503, said, code="ensemble_unavailable") from error
        finally:
            events.cancel()

    async def state(self) -> State | Refusal:
        """A refusal where no replica says anything in time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.handle.state.remote()
        except (TimeoutError, RayError, RayServeException):
            return Refusal(503, "no replica is ready", "ensemble_unavailable")


@serve.ingress()
class Ingress:
    """Takes requests; it loads no model."""

    def __init__(self, args: GuidedArgs, handles: dict[str, DeploymentHandle]) -> None:
        self.args, self.handles = args, handles

    def __serve_build_asgi_app__(self) -> FastAPI:
        from trimtab.serving.web import web

        backends = {name: Remote(name, handle) for name, handle in self.handles.items()}
        return web(self.args, backends, echoes=False)


def build(args: GuidedArgs) -> Application:
    """What a serve file's `import_path` names; aliases mean what they mean now. Raises JobError with every mistake."""
    args, origins = bound(checked(args))
    options = {"max_ongoing_requests": MANY, "graceful_shutdown_timeout_s": args.deadline_s}
    ensembles = {
        name: serve.deployment(EnsembleReplica, name=name, **options).bind(args, name, origins) for name in args.groups
    }
    options |= {"max_surge_percent": 100, "ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(Ingress, name=INGRESS, **options).bind(args, ensembles)

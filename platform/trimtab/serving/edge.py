"""The rim of the API: request ids, the size of bodies, and errors in OpenAI's shape."""

import logging
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.mistakes import worded
from trimtab.serving.answer import Refusal, Refused
from trimtab.serving.meters import Meters
from trimtab.serving.replies import ErrorBody, Problem

LOG = logging.getLogger("ray.serve")
ID = "x-request-id"
GUARDS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "frame-ancestors 'none'"}
"""On every response: no guessing of types, no frames of other sites around the page."""
LONGEST = 2000
"""Characters of an error's message."""
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_text(refusal: Refusal) -> str:
    """A refusal as JSON."""
    message = refusal.message.encode(errors="replace").decode()
    message = message if len(message) <= LONGEST else message[:LONGEST] + " ..."
    kind = TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    param = refusal.param and refusal.param.encode(errors="replace").decode()[:100]
    return ErrorBody(error=Problem(message=message, type=kind, param=param, code=refusal.code)).json_text()


def refusing(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    headers = {"Retry-After": "1"} if refusal.status in (429, 503) else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_text(refusal), refusal.status, headers, "application/json")


def in_openai_shape(app: FastAPI) -> None:
    """Let every error of an app be one that OpenAI's clients understand."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusing(error.refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refusing(_wrong(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        said = {404: f"there is nothing at {request.url.path}"}.get(error.status_code, str(error.detail))
        return refusing(Refusal(error.status_code, said))


def _wrong(errors: Sequence[Any], body: Any) -> Refusal:
    first = errors[0]
    if first["type"] == "json_invalid":
        return Refusal(400, f"broken JSON at character {first['loc'][-1]}: {first.get('ctx', {}).get('error')}")
    if not isinstance(body, dict):
        return Refusal(400, "the body should be a JSON object, with Content-Type: application/json")
    found = worded([one | {"loc": one["loc"][1:]} for one in errors], ErrorBody, body, ())
    text = "; ".join(f"{'.'.join(map(str, loc))}: {said}" for loc, said in found)
    return Refusal(400, text, param=".".join(map(str, found[0][0])))


class Edge:
    """Around the whole app: every response is counted and, if `echoes`, has its request's id.

    What breaks does not go out bare. Bodies of more than `longest` bytes stay out.
    """

    def __init__(self, app: ASGIApp, meters: Meters, *, longest: int, echoes: bool) -> None:
        self.app, self.meters, self.longest, self.echoes = app, meters, longest, echoes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name, status = request_id(headers.get(ID)), 0
        scope.setdefault("state", {})["request_id"] = name

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told.update(GUARDS | ({ID: name} if self.echoes else {}))
            await send(message)

        try:
            if (
                headers.get("content-length", "0").isdecimal()
                and int(headers.get("content-length", "0")) > self.longest
            ):
                await refusing(self._too_long())(scope, receive, sent)
            else:
                await self.app(scope, self._limited(receive), sent)
        except Exception:
            LOG.exception("request %s failed", name)
            if status:
                raise
            await refusing(Refusal(500, f"the server failed; its log has request {name}"))(scope, receive, sent)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.meters.requests.labels(path, scope["state"].get("model", ""), str(status)).inc()

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.longest:
                raise HTTPException(413, self._too_long().message)
            return message

        return limited

    def _too_long(self) -> Refusal:
        return Refusal(413, f"the body is longer than {self.longest} bytes", "request_too_large")


def request_id(given: str | None) -> str:
    """The client's, if it can stand in a header and a log; else a new one."""
    fine = given and len(given) <= 128 and given.isascii() and given.isprintable()
    return given if fine else secrets.token_hex(16)

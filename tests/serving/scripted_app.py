"""A small real server for the page's tests: OpenAI's routes with guidance, its tokens read off a script."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

import trimtab

PAGE = Path(trimtab.__file__).parent / "serving" / "page"
BASE, HELPER = "big", "small-kind"
PLAIN = [(" It", -0.5), (" is", -0.2), (" 漢", -1.5), (" bad", -0.9), (".", -0.1)]
GUIDED = [(" It", -0.52, -0.5), (" is", -0.5, -0.2), (" naïve", -1.0, -5.0), (" good", -0.4, -1.9), ("!\n", -0.7, -2.2)]
MARKUP = "<img src=x onerror=\"document.title='taken'\"> & <script>document.title='taken'</script>"
MODELS = [
    {"id": BASE, "object": "model", "owned_by": "trimtab"},
    {
        "id": "kind",
        "object": "model",
        "owned_by": "trimtab",
        "ensemble": {
            "method": "genarm",
            "members": {"base": BASE, "helpers": [HELPER]},
            "ranges": {"alpha": {"min": 0, "max": 2, "default": 1, "step": 0.25}},
            "description": "Kinder words.",
        },
    },
    {
        "id": "terse",
        "object": "model",
        "owned_by": "trimtab",
        "ensemble": {
            "method": "nudging",
            "members": {"base": BASE, "helpers": [HELPER]},
            "ranges": {
                "gamma": {"min": 0, "max": 1, "default": 0.4},
                "window": {"min": 1, "max": 64, "default": 16, "step": 1},
            },
            "description": MARKUP,
        },
    },
]


@dataclass
class Script:
    """What the server lists and streams, what was asked of it, and how many streams their readers left."""

    port: int
    models: list[dict[str, Any]]
    stream: Callable[[dict[str, Any]], AsyncIterator[str]]
    key: str | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    left: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def body(self, method: str | None) -> dict[str, Any]:
        """The last request of one side: method "none" for the base alone, None for the guided one."""
        return [body for _, body in self.asked if body["guidance"].get("method") == method][-1]


@contextmanager
def serving(
    models: list[dict[str, Any]] = MODELS, stream: Callable[[dict[str, Any]], AsyncIterator[str]] | None = None
) -> Iterator[Script]:
    """The server on a free port of this machine. `stream`: what answers a body, else guidance."""
    listener = socket.create_server(("127.0.0.1", 0))
    script = Script(listener.getsockname()[1], models, stream or events)
    config = uvicorn.Config(app_of(script), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield script
    finally:
        server.should_exit = True
        thread.join()


def app_of(script: Script) -> FastAPI:
    app = FastAPI()

    def refused(request: Request) -> JSONResponse | None:
        if script.key is None or request.headers.get("authorization") == f"Bearer {script.key}":
            return None
        return error("That is no key of this server.", status=401, code="invalid_api_key")

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        return refused(request) or {"object": "list", "data": script.models}

    @app.post("/v1/{route:path}")
    async def complete(route: str, request: Request) -> Any:
        body = await request.json()
        if answer := refused(request):
            return answer
        script.asked.append((route, body))
        if told(body) == "refuse":
            return error("max_tokens is too large.", status=400, param="max_tokens", code="too_large")
        return StreamingResponse(cut(script, script.stream(body)), media_type="text/event-stream")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def error(message: str, *, status: int, param: str | None = None, code: str | None = None) -> JSONResponse:
    told = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": told}, status)


def told(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"] if "messages" in body else body["prompt"]


async def cut(script: Script, events: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Bytes that end anywhere, in the middle of characters too."""
    try:
        async for event in events:
            whole = event.encode()
            for i in range(0, len(whole), 101):
                yield whole[i : i + 101]
                await asyncio.sleep(0)
    except asyncio.CancelledError:
        script.left += 1
        raise


async def events(body: dict[str, Any]) -> AsyncIterator[str]:
    prompt, guided = told(body), body["guidance"].get("method") != "none"
    script = [(MARKUP, -1.0, -2.0)] if prompt == "markup" else GUIDED if guided else [(t, p, p) for t, p in PLAIN]
    chat = "messages" in body
    yield ": here it comes\n\n"
    if chat:
        yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    while prompt == "endless":
        yield event({"choices": [choice(body, script[0])]})
        await asyncio.sleep(0.01)
    for i, one in enumerate(script):
        yield event({"choices": [choice(body, one)]})
        if i == 1 and prompt == "fail":
            yield 'event: error\ndata: {"error": {"message": "The decoder stopped.", "type": "server_error"}}\n\n'
            return
        if i == 1 and prompt == "cut":
            return
    yield event({"choices": [{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 7, "completion_tokens": len(script), "total_tokens": 7 + len(script)}
    counts = {HELPER: {"prompt": 7, "decode": len(script)}} if guided else {}
    yield event({"choices": [], "usage": usage, "guidance_usage": counts})
    yield "data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def choice(body: dict[str, Any], one: tuple[str, float, float]) -> dict[str, Any]:
    """One token with its logprobs, and its trace where one is asked for; in "terse" the helper writes alone."""
    text, fused, base = one
    likeliest = [{"token": text, "logprob": fused}, {"token": " other", "logprob": -3.0}]
    trace = {"source": "fused", "weights": {BASE: 1.0, HELPER: 1.0}, "said": {BASE: base, HELPER: -0.3}}
    if body["model"] == "terse":
        trace = {"source": HELPER, "weights": {HELPER: 1.0}, "said": {HELPER: fused}}
    return {
        "index": 0,
        **({"delta": {"content": text}} if "messages" in body else {"text": text}),
        "logprobs": {"content": [{"token": text, "logprob": fused, "top_logprobs": likeliest}]},
        **({"trace": [trace]} if body["guidance"].get("trace") else {}),
        "finish_reason": None,
    }

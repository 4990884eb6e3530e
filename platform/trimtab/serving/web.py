"""The API as a web application: OpenAI's routes, `/v1/score`, and what operators look at."""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from starlette.responses import Response, StreamingResponse
from starlette.staticfiles import StaticFiles

import trimtab
from trimtab.serving.answer import Backend, Event, Opened, Piece, Refusal, Refused
from trimtab.serving.cards import card, cards
from trimtab.serving.config import GuidedArgs
from trimtab.serving.debated import debated
from trimtab.serving.edge import Edge, error_text, in_openai_shape
from trimtab.serving.gate import Gate, Keys
from trimtab.serving.guidance import Steering, flat, steering
from trimtab.serving.openai import ChatRequest, CompletionRequest, ModelRequest, ScoreRequest
from trimtab.serving.replies import ErrorBody, Form, Reply
from trimtab.serving.scores import Scores, scores

LOG = logging.getLogger("ray.serve")
ERRORS = {status: {"model": ErrorBody} for status in (400, 401, 404, 413, 422, 429, 502, 503, 504)}
EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
VERSION = "x-ensemble-version"


def web(args: GuidedArgs, backends: Mapping[str, Backend], *, echoes: bool = True) -> FastAPI:
    """The application. `backends`: every ensemble by its name. `echoes`: no proxy before it tells requests' ids."""
    gate, keys = Gate(args, backends), Keys(args.api_keys_env, os.environ)

    def key(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
        keys.check(authorization, request.client.host if request.client else None)

    app = FastAPI(title="trimtab", version=trimtab.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Edge, meters=gate.meters, longest=args.limits.body_bytes, echoes=echoes)
    in_openai_shape(app)
    app.include_router(_openai(gate), dependencies=[Depends(key)], responses=ERRORS)
    app.include_router(_operators(gate), dependencies=[Depends(key)], responses={401: ERRORS[401]})
    app.include_router(_probes(gate))
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True), name="page")
    return app


def _openai(gate: Gate) -> APIRouter:
    api = APIRouter(prefix="/v1")

    @api.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": cards(gate.args)}

    @api.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        return card(gate.args, model)

    @api.post("/chat/completions", response_model=Reply)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await _answered(gate, asked, request)

    @api.post("/completions", response_model=Reply)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        return await _answered(gate, asked, request)

    @api.post("/score", response_model=Scores)
    async def score(asked: ScoreRequest, request: Request) -> Response:
        steer = _steering(gate, asked, request)
        debated(gate.args, asked)
        events = gate.events(asked.request(gate.args.limits, guide=steer.guide), steer.ensemble, asked.model)
        opened, pieces = await _all(events)
        return _json(scores(asked.model, opened.version, pieces).json_text(), opened)

    return api


def _operators(gate: Gate) -> APIRouter:
    api = APIRouter()

    @api.get("/metrics")
    async def metrics() -> Response:
        await gate.states()
        return Response(gate.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/version")
    async def version() -> dict[str, str]:
        return {"trimtab": trimtab.__version__}

    return api


def _probes(gate: Gate) -> APIRouter:
    api = APIRouter()

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> dict[str, Any]:
        states = await gate.states()
        if missing := [f"{name}: {state.message}" for name, state in states.items() if isinstance(state, Refusal)]:
            raise Refused(503, "; ".join(missing), code="ensemble_unavailable")
        return {"status": "ready", "ensembles": {name: state.version for name, state in states.items()}}

    return api


def _steering(gate: Gate, asked: ModelRequest, request: Request) -> Steering:
    """What answers; fields that nobody knows are warned of. Raises Refused."""
    extra = asked.extra
    steer = steering(gate.args, asked.model, flat(extra) | (asked.guidance or {}))
    request.state.model = asked.model
    if ignored := [name for name in extra if name.removeprefix("guidance_") == name]:
        LOG.warning("request %s: ignored %s", request.state.request_id, ", ".join(map(ascii, sorted(ignored)[:20])))
    return steer


async def _answered(gate: Gate, asked: ChatRequest | CompletionRequest, request: Request) -> Response:
    steer = _steering(gate, asked, request)
    debate = debated(gate.args, asked)
    wanted = asked.request(gate.args.limits, guide=steer.guide, debate=debate)
    form = Form(
        model=asked.model,
        steering=steer,
        chat=isinstance(asked, ChatRequest),
        logprobs=wanted.likeliest is not None,
        like_chat=asked.like_chat,
        usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )
    if steer.trace and wanted.likeliest is None:
        wanted = replace(wanted, likeliest=0)
    events = gate.events(wanted, steer.ensemble, asked.model)
    if not asked.stream:
        opened, pieces = await _all(events)
        form.version = opened.version
        return _json(form.whole(pieces).json_text(), opened)
    opened, *first = await anext(events)
    form.version = opened.version
    told = _told(form, first, events)
    return StreamingResponse(told, media_type="text/event-stream", headers=EVENTS | {VERSION: opened.version})


async def _all(events: AsyncIterator[tuple[Event, ...]]) -> tuple[Opened, list[Piece]]:
    async with aclosing(events):
        opened, *pieces = [event async for batch in events for event in batch]
    return opened, pieces


def _json(text: str, opened: Opened) -> Response:
    return Response(text, media_type="application/json", headers={VERSION: opened.version})


async def _told(form: Form, first: list[Piece], events: AsyncIterator[tuple[Event, ...]]) -> AsyncIterator[str]:
    """Server-sent events. What goes wrong now can only be told in the stream, which then ends without [DONE]."""
    spent = []
    async with aclosing(events):
        try:
            batch: tuple[Event, ...] | None = tuple(first)
            while batch:
                spent += [piece.spent for piece in batch if piece.spent]
                yield "".join(_event(chunk.json_text()) for piece in batch for chunk in form.chunks(piece))
                batch = await anext(events, None)
        except Refused as error:
            yield _event(error_text(error.refusal))
            return
        except Exception:
            LOG.exception("a stream failed")
            yield _event(error_text(Refusal(500, "the server failed")))
            return
    if form.usage:
        yield _event(form.last(spent).json_text())
    yield _event("[DONE]")


def _event(data: str) -> str:
    return f"data: {data}\n\n"

"""A writer over HTTP is the writer that stands behind the server; what a server may get wrong is said."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from tests.models.test_writer import tokenizer, writer

from trimtab.errors import ModelError
from trimtab.methods.guides.nudging import Nudging
from trimtab.models.remote import Remote, RemoteWriter

__all__ = ["tokenizer"]

pytestmark = pytest.mark.slow

SAY = "Say: "


@contextmanager
def serving(answer: Any) -> Iterator[httpx2.Client]:
    """A server on localhost whose completions are what `answer` makes of a request's body."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(request: Request) -> JSONResponse:
        return JSONResponse(*answer(await request.json()))

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/"
        with httpx2.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def behind(local: Any) -> Any:
    """A server's answers, by a writer of this process."""

    def answer(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        assert (body["temperature"], body["logprobs"]) == (0, 1)
        window = local.write(body["prompt"].removeprefix(SAY), body["max_tokens"])
        tokens = [token.text for token in window.tokens]
        told = {"tokens": tokens, "token_logprobs": [math.log(token.probability) for token in window.tokens]}
        finish = "stop" if window.stopped else "length"
        return {"choices": [{"text": "".join(tokens), "logprobs": told, "finish_reason": finish}]}, 200

    return answer


def test_both_backends_write_one_answer(tokenizer):
    locals_ = [writer(tokenizer, seed)[0] for seed in (0, 1)]
    expected = list(Nudging(gamma=0.05)(*locals_, most=30))
    with serving(behind(locals_[0])) as base, serving(behind(locals_[1])) as nudger:
        remote = [RemoteWriter(Remote(client, "tiny"), SAY) for client in (base, nudger)]
        found = list(Nudging(gamma=0.05)(*remote, most=30))
        assert [one.text for one in found[:-1]] == [one.text for one in expected[:-1]]
        assert found[-1] == expected[-1]
        words = ["bread", " door", " river"]
        for ours, theirs in zip(
            remote[0].first_tokens("cup ", words), locals_[0].first_tokens("cup ", words), strict=True
        ):
            assert (ours is None) == (theirs is None)
            if ours:
                assert (ours.text, ours.probability) == (theirs.text, pytest.approx(theirs.probability, abs=1e-4))


def test_an_end_token_that_is_told_is_no_text():
    told = {"tokens": ["bread", "<end>"], "token_logprobs": [-0.5, -0.1]}
    choice = {"text": "bread", "logprobs": told, "finish_reason": "stop"}
    with serving(lambda body: ({"choices": [choice]}, 200)) as client:
        window = RemoteWriter(Remote(client, "tiny"), SAY).write("", 5)
    assert ([token.text for token in window.tokens], window.stopped) == (["bread"], True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (({"error": {"message": "no such model"}}, 404), "refused tiny: 404 .*no such model"),
        (({"choices": [{"text": "a", "logprobs": None}]}, 200), "tells no log-probs"),
    ],
)
def test_what_a_server_cannot_do_is_said(answer, said):
    with serving(lambda body: answer) as client, pytest.raises(ModelError, match=said):
        RemoteWriter(Remote(client, "tiny"), SAY).write("", 5)


def test_a_server_that_is_not_there_is_named():
    with (
        httpx2.Client(base_url="http://127.0.0.1:9/v1/") as client,
        pytest.raises(ModelError, match=r"127.0.0.1:9.* does not answer"),
    ):
        RemoteWriter(Remote(client, "tiny"), SAY).write("", 5)

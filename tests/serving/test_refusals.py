"""Bad requests: the right status, an error that OpenAI's clients understand, saying what is allowed; no slot lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.decoding import ScriptedStepper
from tests.serving.kit import Slow, arguments, ensemble, idle, serving, speller, until

from trimtab.serving.tokenwise import Tokenwise

pytestmark = pytest.mark.slow

CHAT, COMPLETIONS, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
HI = [{"role": "user", "content": "hi"}]
DUO = {"base": "base", "helpers": ["helper"], "guide": {"kind": "genarm", "alpha": 0.5}}


@dataclass(frozen=True)
class Api:
    http: httpx.Client
    ensemble: Tokenwise

    def error(self, answer: httpx.Response) -> dict[str, Any]:
        """What is wrong, in OpenAI's shape."""
        assert set(answer.json()) == {"error"}
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert len(error["message"]) < 2100
        return error


def answerer() -> Tokenwise:
    return ensemble(
        {name: ScriptedStepper(speller(text), 2, 200) for name, text in (("base", "yes"), ("helper", "no"))}
    )


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    one = answerer()
    limits = {"n": 4, "max_tokens": 50, "prompts": 3, "body_bytes": 100_000}
    with serving(arguments({"duo": DUO}, limits=limits), {"duo": one}) as url:
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Api(http, one)


BAD = [
    (COMPLETIONS, {"model": "dou"}, 404, "did you mean 'duo'"),
    (COMPLETIONS, {"model": None}, 400, "model"),
    (COMPLETIONS, {"prompt": None}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "x" * 300}, 400, "300 tokens; at most 199 here"),
    (COMPLETIONS, {"prompt": ""}, 400, "has no token to go on from"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["a", ""]}, 400, "no token"),
    (COMPLETIONS, {"prompt": ["a"] * 4}, 400, "prompt: at most 3"),
    (COMPLETIONS, {"prompt": [5, 99999]}, 400, "no token 99999"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "\ud800"}, 400, "surrogate"),
    (COMPLETIONS, {"prompt": {"text": "a"}}, 400, "prompt"),
    (COMPLETIONS, {"temperature": -0.1}, 400, "temperature: should be greater than or equal to 0"),
    (COMPLETIONS, {"temperature": float("nan")}, 400, "temperature"),
    (COMPLETIONS, {"temperature": "hot"}, 400, "temperature"),
    (COMPLETIONS, {"top_p": 1.1}, 400, "top_p"),
    (COMPLETIONS, {"n": 5}, 400, "n: at most 4 here"),
    (COMPLETIONS, {"n": 10**30}, 400, "n"),
    (COMPLETIONS, {"n": 0}, 400, "n"),
    (COMPLETIONS, {"best_of": 3}, 400, "best_of"),
    (COMPLETIONS, {"max_tokens": 51}, 400, "max_tokens: at most 50 here"),
    (COMPLETIONS, {"max_tokens": 0}, 400, "needs echo"),
    (COMPLETIONS, {"max_tokens": -1}, 400, "max_tokens"),
    (COMPLETIONS, {"logprobs": 21}, 400, "logprobs"),
    (COMPLETIONS, {"stop": ""}, 400, "stop"),
    (COMPLETIONS, {"stop": ["a"] * 17}, 400, "stop"),
    (COMPLETIONS, {"seed": 2**63}, 400, "seed"),
    (COMPLETIONS, {"logit_bias": {"5": 101}}, 400, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"five": 1}}, 400, "token ids"),
    (COMPLETIONS, {"logit_bias": {"99999": 1}}, 400, "no token 99999"),
    (COMPLETIONS, {"presence_penalty": 3}, 400, "presence_penalty"),
    (COMPLETIONS, {"suffix": "end"}, 400, "suffix: is not supported"),
    (COMPLETIONS, {"stream_options": 1}, 400, "stream_options"),
    (COMPLETIONS, {"guidance": {"alpha": 11}}, 422, "guidance.alpha: should be 0 to 10"),
    (COMPLETIONS, {"guidance": {"alhpa": 1}}, 400, "did you mean 'alpha'?; allowed: method, guides, trace, alpha"),
    (COMPLETIONS, {"guidance": {"guides": [{"model": "other"}]}}, 400, "there: helper"),
    (COMPLETIONS, {"guidance": {"method": "proxy"}}, 422, "proxy takes at least 2 helpers"),
    (COMPLETIONS, {"guidance": "more"}, 400, "guidance"),
    (COMPLETIONS, {"guidance_alpha": 11}, 422, "0 to 10"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": None}, 400, "messages"),
    (CHAT, {"messages": "hi"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "tool", "content": "hi"}]}, 400, "no tools here"),
    (CHAT, {"messages": [{"role": "user", "content": "\udfff"}]}, 400, "surrogate"),
    (CHAT, {"top_logprobs": 2}, 400, "needs logprobs"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools: is not supported"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format"),
    (SCORE, {"prompt": "a"}, 400, "completion"),
    (SCORE, {"completion": "b"}, 400, "either prompt or messages"),
    (SCORE, {"prompt": "a", "messages": HI, "completion": "b"}, 400, "either prompt or messages"),
    (SCORE, {"prompt": "a", "completion": ""}, 400, "no token"),
    (SCORE, {"prompt": "a", "completion": "b" * 200}, 400, "201 tokens; at most 199"),
    (SCORE, {"prompt": "a", "completion": [99999]}, 400, "no token 99999"),
]
USUAL = {COMPLETIONS: {"prompt": "say:"}, CHAT: {"messages": HI}, SCORE: {}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[2]}-{ascii(bad[1])[:50]}")
def test_bad_requests(api: Api, bad: tuple[str, dict[str, Any], int, str], stream: bool) -> None:
    path, change, status, said = bad
    body = json.dumps({"model": "duo", "stream": stream} | USUAL[path] | change)
    answer = api.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = api.error(answer)
    assert said in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert "retry-after" not in answer.headers
    until(lambda: idle(api.ensemble))


def test_codes_that_clients_look_at(api: Api) -> None:
    asked = {"model": "duo", "prompt": "a"}
    codes = {
        "model_not_found": asked | {"model": "x"},
        "context_length_exceeded": asked | {"prompt": "x" * 500},
        "guide_not_available": asked | {"guidance": {"guides": [{"model": "x"}]}},
    }
    assert {code: api.error(api.http.post(COMPLETIONS, json=body))["code"] for code, body in codes.items()} == {
        code: code for code in codes
    }
    assert api.error(api.http.get("/v1/models/nobody"))["code"] == "model_not_found"


@pytest.mark.parametrize("text", ['{"model": "duo", "prompt":', "", "[1]", '"text"', "{'a': 1}", "[" * 20_000, "null"])
def test_what_is_no_json_object(api: Api, text: str) -> None:
    answer = api.http.post(COMPLETIONS, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    api.error(answer)


def test_a_form_is_no_json(api: Api) -> None:
    answer = api.http.post(COMPLETIONS, data={"model": "duo", "prompt": "a"})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in api.error(answer)["message"]


def test_a_body_of_a_megabyte(api: Api) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "duo", "prompt": "'
        for _ in range(100):
            yield b"x" * 10_000
        yield b'"}'

    whole = b"".join(chunks())
    for content in (whole, chunks()):
        answer = api.http.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        error = api.error(answer)
        assert "longer than 100000 bytes" in error["message"]


def test_paths_and_methods_that_are_not_there(api: Api) -> None:
    for method, path in (("GET", "/v2/models"), ("POST", "/v1/models"), ("GET", CHAT), ("PUT", COMPLETIONS)):
        answer = api.http.request(method, path)
        assert answer.status_code in (404, 405)
        api.error(answer)


def test_after_all_that_it_answers(api: Api) -> None:
    answer = api.http.post(COMPLETIONS, json={"model": "duo", "prompt": "say:", "temperature": 0})
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "yes")
    assert idle(api.ensemble)


def test_a_key_is_asked_for_everywhere_but_at_the_probes_and_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", "one,two")
    with serving(arguments({"duo": DUO}, api_keys_env="SOME_KEYS"), {"duo": answerer()}) as url:
        with httpx.Client(base_url=url, timeout=60) as http:
            for path in ("/v1/models", "/v1/models/duo", "/metrics", "/version"):
                assert http.get(path).status_code == 401
                assert http.get(path, headers={"Authorization": "Bearer three"}).status_code == 401
                assert http.get(path, headers={"Authorization": "Bearer two"}).status_code == 200
            for path in (CHAT, COMPLETIONS, SCORE):
                answer = http.post(path, json={"model": "nobody"})
                assert answer.status_code == 401
                assert (answer.json()["error"]["code"], answer.headers["www-authenticate"]) == (
                    "invalid_api_key",
                    "Bearer",
                )
            for path in ("/health", "/ready", "/"):
                assert http.get(path).status_code == 200


def slow(slots: int = 1) -> Tokenwise:
    return ensemble({"base": Slow(speller("a" * 1000), slots, 1100), "helper": Slow(speller("b"), slots, 1100)})


LONG = {"model": "duo", "prompt": "say:", "max_tokens": 1000, "temperature": 0}


def test_too_many_at_once_are_told_to_come_again() -> None:
    one = slow()
    args = arguments({"duo": DUO}, limits={"in_flight": 1, "queue": 0})
    with serving(args, {"duo": one}) as url, httpx.Client(base_url=url, timeout=60) as http:
        with http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}) as first:
            lines = first.iter_lines()
            next(lines)
            for stream in (False, True):
                answer = http.post(COMPLETIONS, json=LONG | {"stream": stream})
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        until(lambda: idle(one))
        until(lambda: http.post(COMPLETIONS, json=LONG | {"max_tokens": 1}).status_code == 200)


def test_who_takes_too_long_is_ended() -> None:
    one = slow()
    with serving(arguments({"duo": DUO}, deadline_s=0.4), {"duo": one}) as url:
        with httpx.Client(base_url=url, timeout=60) as http:
            answer = http.post(COMPLETIONS, json=LONG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")

            def streamed() -> str:
                """What comes until the end; none of it where that comes first."""
                answer = http.post(COMPLETIONS, json=LONG | {"stream": True})
                if answer.status_code == 504:
                    return ""
                *told, last = [json.loads(line[6:]) for line in answer.text.split("\n") if line]
                assert last["error"]["code"] == "deadline_exceeded"
                return "".join(one["choices"][0]["text"] for one in told)

            until(lambda: "aaa" in streamed(), seconds=60)
            until(lambda: idle(one))


def test_who_waits_in_line_too_long_is_ended_too() -> None:
    args = arguments({"duo": DUO}, deadline_s=0.5, limits={"in_flight": 1, "queue": 5})
    one = slow()
    with serving(args, {"duo": one}) as url, httpx.Client(base_url=url, timeout=60) as http:
        with http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}) as first:
            lines = first.iter_lines()
            next(lines)
            assert http.post(COMPLETIONS, json=LONG).status_code == 504


def test_a_decoder_that_fails_ends_its_streams_and_is_not_ready() -> None:
    one = slow(slots=2)
    with serving(arguments({"duo": DUO}), {"duo": one}) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/ready").json()["ensembles"] == {"duo": "v1"}
        with http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}) as first:
            lines = first.iter_lines()
            next(lines)
            one.engine.decoder.models[0].read = None
            last = [line for line in lines if line][-1]
        assert json.loads(last[6:])["error"]["code"] == "ensemble_unavailable"
        until(lambda: not one.engine.alive)
        for answer in (http.post(COMPLETIONS, json=LONG), http.get("/ready")):
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert http.get("/health").status_code == 200

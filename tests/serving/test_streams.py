"""Streams: chunks as OpenAI's clients read them, text token by token, and clients that leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.decoding import ScriptedStepper
from tests.serving.kit import Slow, arguments, ensemble, idle, llamas, serving, speller, until

from trimtab.serving.tokenwise import Tokenwise

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "hi"}]
SAID = "Grüße, 世界! Ende."
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def slow() -> Tokenwise:
    return ensemble({"base": Slow(speller("la " * 400), 2, 1200), "helper": Slow(speller("b"), 2, 1200)})


@pytest.fixture(scope="module")
def http(slow: Tokenwise) -> Iterator[httpx.Client]:
    guide = {"kind": "genarm", "alpha": 0.5}
    duo = {"base": "base", "helpers": ["helper"], "guide": guide}
    args = arguments({name: duo for name in ("duo", "slow", "tiny")})
    duo = ensemble({name: ScriptedStepper(speller(text), 3, 200) for name, text in (("base", SAID), ("helper", "No"))})
    with serving(args, {"duo": duo, "slow": slow, "tiny": ensemble(llamas())}) as url:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client


def chunks(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    """What is streamed, up to [DONE]."""
    usual = {"model": "duo", "stream": True, "temperature": 0} | (
        {"messages": HI} if path == CHAT else {"prompt": "say:"}
    )
    answer = http.post(path, json=usual | body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-ensemble-version"]) == ("no-cache", "v1")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_chat_comes_in_chunks(http: httpx.Client) -> None:
    first, *rest = chunks(http, CHAT)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in rest) == SAID
    assert [chunk["choices"][0]["finish_reason"] for chunk in rest] == [None] * (len(rest) - 1) + ["stop"]
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in [first, *rest]}) == 1
    assert (first["object"], first["system_fingerprint"]) == ("chat.completion.chunk", "v1")
    assert len(rest) >= len(SAID)
    assert not any("usage" in chunk for chunk in [first, *rest])


def test_a_completion_comes_in_chunks_and_no_character_is_split(http: httpx.Client) -> None:
    found = chunks(http, COMPLETIONS, max_tokens=50)
    texts = [chunk["choices"][0]["text"] for chunk in found]
    assert "".join(texts) == SAID
    assert "ü" in texts
    assert "世" in texts
    assert {chunk["object"] for chunk in found} == {"text_completion"}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_comes_last_for_who_asks(http: httpx.Client, path: str) -> None:
    *found, last = chunks(http, path, max_tokens=4, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in found)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4
    assert last["guidance_usage"]["helper"]["decode"] == 4


def test_what_is_held_back_for_a_stop_comes_with_its_tokens(http: httpx.Client) -> None:
    found = chunks(http, COMPLETIONS, max_tokens=50, stop=["! Ende?", "de."], logprobs=0)
    texts = [chunk["choices"][0]["text"] for chunk in found]
    assert "".join(texts) == SAID[:-3]
    assert "! En" in "".join(texts)
    tokens = [token for chunk in found for token in chunk["choices"][0]["logprobs"]["tokens"]]
    raw = b"".join(bytes.fromhex(t[6:].replace("\\x", "")) if t.startswith("bytes:") else t.encode() for t in tokens)
    assert raw.decode() == SAID[:-3]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    shown = ""
    for chunk in found:
        shown += chunk["choices"][0]["text"]
        assert all(offset <= len(shown) for offset in chunk["choices"][0]["logprobs"]["text_offset"])


def test_log_probs_and_trace_stand_beside_the_text(http: httpx.Client) -> None:
    found = chunks(http, CHAT, logprobs=True, top_logprobs=2, guidance={"trace": True}, max_tokens=6)
    for chunk in found[1:]:
        (choice,) = chunk["choices"]
        told = choice["logprobs"]["content"]
        assert b"".join(bytes(token["bytes"]) for token in told).decode() == choice["delta"]["content"]
        assert [len(token["top_logprobs"]) for token in told] == [2] * len(told)
        assert [one["token"] for one in choice["trace"]] == [token["token"] for token in told]
    assert sum(len(chunk["choices"][0]["trace"]) for chunk in found[1:]) == 6


def test_several_answers_share_a_stream(http: httpx.Client) -> None:
    asked = {"model": "tiny", "temperature": 1, "seed": 4, "max_tokens": 6, "n": 3}
    whole = http.post(COMPLETIONS, json={"prompt": "say:"} | asked).json()["choices"]
    texts, finish = dict.fromkeys(range(3), ""), {}
    for chunk in chunks(http, COMPLETIONS, **asked):
        (choice,) = chunk["choices"]
        assert choice["index"] not in finish
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            finish[choice["index"]] = choice["finish_reason"]
    assert [(texts[i], finish[i]) for i in range(3)] == [(one["text"], one["finish_reason"]) for one in whole]


def test_the_openai_client_reads_streams(http: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
    asked = {"model": "duo", "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    found = list(client.chat.completions.create(messages=HI, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices) == SAID
    assert found[-1].usage.completion_tokens > len(SAID)
    texts = client.completions.create(prompt="say:", max_tokens=50, **asked)
    assert "".join(chunk.choices[0].text for chunk in texts if chunk.choices) == SAID
    with client.chat.completions.stream(model="duo", messages=HI, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == SAID


def test_text_comes_while_it_is_written(http: httpx.Client, slow: Tokenwise) -> None:
    asked = {"model": "slow", "prompt": "say:", "temperature": 0, "max_tokens": 1000, "stream": True}
    with http.stream("POST", COMPLETIONS, json=asked) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert not idle(slow)
    until(lambda: idle(slow))


@pytest.mark.parametrize("n", [1, 4])
def test_a_client_that_leaves_frees_its_slots(http: httpx.Client, slow: Tokenwise, n: int) -> None:
    asked = {"model": "slow", "prompt": "say:", "temperature": 0, "max_tokens": 1000, "stream": True, "n": n}
    before = len(slow.engine.decoder.models[0].reads)
    with http.stream("POST", COMPLETIONS, json=asked) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: slow.state().in_use == min(n, 2))
    until(lambda: idle(slow))
    assert len(slow.engine.decoder.models[0].reads) - before < 1000, "it did not go on to the end"
    none = 'trimtab_completions_in_flight{ensemble="slow"} 0.0'
    until(lambda: none in http.get("/metrics").text.splitlines())
    assert chunks(http, COMPLETIONS, model="slow", max_tokens=2)[-1]["choices"][0]["finish_reason"] == "length"

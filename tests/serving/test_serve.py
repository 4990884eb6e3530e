"""The shipped serve file on a real Ray Serve, small networks in the place of its models: clients and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.ports import free_port
from tests.serving.kit import END, saved, until

from trimtab import verbs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FILE = Path(__file__).parents[2] / "serve" / "contrastive.yaml"
ENSEMBLE, DEBATE = "contrast-smol", "duel"
COMPLETIONS = "/v1/completions"
PATIENCE = 300
ENDLESS = {"model": ENSEMBLE, "prompt": "a", "max_tokens": 7000, "logit_bias": {str(END): -100}}


@dataclass(frozen=True)
class Api:
    url: str
    models: list[str]
    overrides: list[str]
    http: httpx.Client

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def in_use(self) -> tuple[float, ...]:
        """Slots taken, and completions let in."""
        lines = self.http.get("/metrics").text.splitlines()
        wanted = ("trimtab_slots_in_use{", "trimtab_completions_in_flight{")
        return tuple(
            float(line.split()[-1]) for name in wanted for line in lines if line.startswith(name) and ENSEMBLE in line
        )


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("serve")
    shutil.copy(empty_store, root / "mlflow.db")
    args = "applications.0.args"
    words = root / "words.toml"
    words.write_text('judge_reply = "The right answer is "\njudge_labels = ["A", "B"]\n')
    overrides = [
        f"http_options.port={free_port()}",
        f"{args}.storage={root}",
        f"{args}.models.smol={saved(root / 'base')}",
        f"{args}.models.smol-22={{source: {saved(root / 'helper', layers=1)}}}",
        f"{args}.ensembles.{ENSEMBLE}.context=8000",
        f"{args}.limits.max_tokens=7000",
        f"{args}.debates={{{DEBATE}: {{debater: smol, judges: [smol-22], context: 16000, "
        f"protocol: {{kind: sequential, turns: 2, words: 1000, temperature: 0, prompts: {words}}}}}}}",
    ]
    with verbs.serve(FILE, overrides) as found, httpx.Client(base_url=found.url, timeout=PATIENCE) as http:
        yield Api(found.url, found.models, overrides, http)


def events(answer: httpx.Response) -> Iterator[Any]:
    """Of a stream, as they come; the last is [DONE] or an error."""
    for line in answer.iter_lines():
        if line:
            said = line.removeprefix("data: ")
            yield said if said == "[DONE]" else json.loads(said)


def test_clients_of_openai(api: Api) -> None:
    client = api.openai
    assert api.models == [ENSEMBLE, DEBATE, "smol", "smol-22"] == [model.id for model in client.models.list()]
    asked = {"model": ENSEMBLE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "seed": 3}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.guidance_usage["smol-22"]["decode"] == whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    none = client.completions.create(
        model=ENSEMBLE, prompt="say", max_tokens=5, temperature=0, extra_body={"guidance": {"method": "none"}}
    )
    base = client.completions.create(model="smol", prompt="say", max_tokens=5, temperature=0)
    assert none.choices[0].text == base.choices[0].text
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "nobody"})
    with pytest.raises(openai.BadRequestError, match="at most 8 here"):
        client.chat.completions.create(**asked, n=9)
    with pytest.raises(openai.BadRequestError, match="9001 tokens; at most 7999"):
        client.completions.create(model=ENSEMBLE, prompt="b" * 9001)
    with pytest.raises(openai.UnprocessableEntityError, match="should be 0 to 2 here"):
        client.chat.completions.create(**asked, extra_body={"guidance": {"coef": 3}})


def test_headers_and_what_operators_look_at(api: Api) -> None:
    answer = api.http.post(COMPLETIONS, json={"model": "smol", "prompt": "a"}, headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    version = answer.headers["x-ensemble-version"]
    assert answer.json()["system_fingerprint"] == version
    ready = api.http.get("/ready").json()
    assert (ready["status"], set(ready["ensembles"]), ready["ensembles"][ENSEMBLE]) == (
        "ready",
        {ENSEMBLE, DEBATE},
        version,
    )
    assert api.http.get("/health").status_code == 200
    assert api.http.post(COMPLETIONS, content=b"x" * 1_100_000).status_code == 413
    assert api.http.post(COMPLETIONS, content="{", headers={"Content-Type": "application/json"}).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_their_slots(api: Api, stream: bool) -> None:
    """While somebody who came before is still told tokens, who would have the last one first."""
    body = json.dumps(ENDLESS | {"stream": stream, "n": 2})
    with api.http.stream("POST", COMPLETIONS, json=ENDLESS | {"stream": True}) as other:
        told = events(other)
        assert next(told)["choices"]
        leaver = HTTPConnection(httpx.URL(api.url).netloc.decode(), timeout=PATIENCE)
        leaver.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        if stream:
            assert leaver.getresponse().readline().startswith(b"data: ")
        until(lambda: api.in_use() == (3, 3))
        leaver.close()
        until(lambda: api.in_use() == (1, 1))
    until(lambda: api.in_use() == (0, 0))


def test_many_side_by_side_say_what_each_says_alone(api: Api) -> None:
    guidance = [{}, {"method": "none"}, {"coef": 1.5}, {"method": "genarm", "alpha": 0.5}]
    bodies = [
        {"model": ENSEMBLE, "prompt": f"say {i}", "max_tokens": 6, "temperature": 0, "guidance": guidance[i % 4]}
        for i in range(24)
    ]

    def said(body: dict[str, Any]) -> str:
        answer = api.http.post(COMPLETIONS, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(said, bodies))
    assert together == [said(body) for body in bodies]
    assert api.in_use() == (0, 0)


def replica(name: str = ENSEMBLE) -> psutil.Process:
    """The process of an ensemble or a debate."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = one.cmdline()
            if name in " ".join(command) and "ServeReplica" in command[0]:
                found.append(one)
    (own,) = found
    return own


@pytest.mark.chaos
def test_a_debater_killed_in_mid_debate_ends_that_debate_and_nothing_else(api: Api) -> None:
    asked = {"model": DEBATE, "messages": [{"role": "user", "content": "Which?"}]}
    asked |= {"debate": {"answers": ["this", "that"]}, "logit_bias": None, "stream": True}
    with (
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
        http.stream("POST", COMPLETIONS, json=ENDLESS | {"stream": True}) as other,
        http.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        elsewhere, told = events(other), events(answer)
        assert next(elsewhere)["choices"]
        assert next(told)["choices"][0]["delta"]["role"] == "assistant"
        os.kill(replica(DEBATE).pid, signal.SIGKILL)
        *_, last = told
        assert last["error"]["code"] == "ensemble_unavailable"
        assert [next(elsewhere)["choices"][0]["finish_reason"] for _ in range(20)] == [None] * 20
    until(lambda: api.http.get("/ready").status_code == 200, seconds=PATIENCE)
    whole = api.http.post(
        "/v1/chat/completions", json=asked | {"stream": False, "debate": {"answers": ["a", "b"], "words": 5}}
    )
    assert whole.json()["choices"][0]["debate"][-1]["event"] == "verdict"


@pytest.mark.chaos
def test_a_storm_with_a_kill_loses_nothing(api: Api) -> None:
    ways = [{}, {"method": "none"}, {"coef": 1.5}, {"method": "genarm", "alpha": 0.5}, {"method": "ensemble"}]
    spoilt = [{"guidance": {"coef": 9}}, {"model": "nobody"}, {"temperature": -1}]
    killed = threading.Event()

    def ask(i: int) -> int | str:
        body = {"model": ENSEMBLE, "prompt": f"say {i}", "max_tokens": 1 + i % 9, "guidance": ways[i % 5], "seed": i}
        body |= {"stream": i % 2 == 0} | (spoilt[i // 25 % 3] if i % 25 == 0 else {})
        if i == 60:
            os.kill(replica().pid, signal.SIGKILL)
            killed.set()
        with (
            httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
            http.stream("POST", COMPLETIONS, json=body) as answer,
        ):
            if answer.status_code != 200:
                return f"{answer.status_code}: {json.loads(answer.read())['error']['message']}"
            if not body["stream"]:
                return json.loads(answer.read())["usage"]["completion_tokens"]
            *_, last = events(answer)
            return 1 if last == "[DONE]" else f"ended: {last['error']['message']}"

    with (
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
        http.stream("POST", COMPLETIONS, json=ENDLESS | {"stream": True}) as answer,
        ThreadPoolExecutor(16) as pool,
    ):
        endless = events(answer)
        assert next(endless)["choices"]
        told = list(pool.map(ask, range(500)))
        *_, last = endless
    assert killed.is_set()
    assert last["error"]["code"] == "ensemble_unavailable"
    assert api.http.get("/health").status_code == 200
    refused = [one for i, one in enumerate(told) if i % 25 == 0 and str(one)[:3] in ("400", "404", "422")]
    failed = [one for i, one in enumerate(told) if i % 25 and isinstance(one, str)]
    assert len(refused) >= 18
    assert all(one.startswith(("503: ", "ended: ")) for one in failed), failed
    until(lambda: api.http.get("/ready").status_code == 200, seconds=PATIENCE)
    until(lambda: api.in_use() == (0, 0))
    before = replica().memory_info().rss
    with ThreadPoolExecutor(16) as pool:
        again = list(pool.map(ask, range(251, 400)))
    assert [one for i, one in enumerate(again, start=251) if i % 25 and isinstance(one, str)] == []
    assert api.in_use() == (0, 0)
    assert replica().memory_info().rss - before < 32 * 2**20

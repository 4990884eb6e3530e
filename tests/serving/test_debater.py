"""A debate behind the API: turns as they are spoken, judges after every beat, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.decoding import ScriptedStepper, tiny_llama
from tests.serving.kit import END, Slow, ensemble, idle, serving, speller, tokenizer, until

from trimtab.methods.debates._base import Case, render
from trimtab.methods.debates._judging import judge_messages
from trimtab.models.llama import LlamaStepper
from trimtab.serving.answer import Debated, Piece
from trimtab.serving.config import GuidedArgs
from trimtab.serving.debater import Debater, Hearing

pytestmark = pytest.mark.slow

SPEECH = " it is so <quote>low hello</quote> and more <quote>never</quote> world"
PROTOCOL = {"kind": "sequential", "turns": 2, "words": 60, "temperature": 0, "order": "given"}
ASKED = {"answers": ["Paris", "Rome"], "source": "A low hello."}
QUESTION = {"model": "duel", "messages": [{"role": "user", "content": "Which city?"}]}


def arguments(**protocol: Any) -> GuidedArgs:
    """The words are the project's, but for labels that the tests' tokenizer tells apart, and a colon to start at."""
    words = Path(tempfile.mkdtemp()) / "words.toml"
    words.write_text('judge_reply = "The right answer is "\njudge_labels = ["A", "B"]\ndebate_start = "For {own}:"\n')
    protocol = {"prompts": str(words)} | protocol
    duel = {"debater": "strong", "judges": ["one", "two"], "protocol": PROTOCOL | protocol, "context": 4000}
    models = dict.fromkeys(("strong", "one", "two"), "nowhere/none")
    return GuidedArgs.model_validate({"models": models, "debates": {"duel": duel}})


def opened(args: GuidedArgs, *, kind: type[ScriptedStepper] = ScriptedStepper) -> Debater:
    """A debater who always says the same, and two random networks that judge."""
    width = len(tokenizer())
    members = [ensemble({"strong": kind(speller(SPEECH, sure=0.999), 4, 4000)})]
    for seed, name in enumerate(("one", "two")):
        model = tiny_llama(seed, vocabulary=width)
        members.append(ensemble({name: LlamaStepper(model, 2, 2000)}))
    return Debater(members, args.debates["duel"], version="v1")


class Api:
    def __init__(self, url: str, debater: Debater) -> None:
        self.url, self.debater = url, debater
        self.http = httpx.Client(base_url=url, timeout=60)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def events(self, **debate: Any) -> list[dict[str, Any]]:
        chunks = self.client.chat.completions.create(
            **QUESTION, stream=True, extra_body={"debate": ASKED | debate}, seed=0
        )
        return [one for chunk in chunks for choice in chunk.choices for one in getattr(choice, "debate", None) or ()]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    args = arguments()
    debater = opened(args)
    with serving(args, {"duel": debater}) as url:
        yield Api(url, debater)


def test_a_whole_debate_streams_to_the_openai_client(api: Api) -> None:
    told = api.events()
    kinds = [one["event"] for one in told if one["event"] != "delta"]
    turn = ["turn", "said", "judged"]
    assert kinds == ["begin", "judged", *turn * 4, "verdict"]
    begin, *_, verdict = told
    assert begin["answers"] == ASKED["answers"]
    assert [one["answer"] for one in begin["speakers"]] == [0, 1]
    assert (begin["judges"], begin["utterances"]) == (["one", "two"], 4)
    said = [one for one in told if one["event"] == "said"]
    assert [one["speaker"] for one in said] == [0, 1, 0, 1]
    assert [one["round"] for one in said] == [0, 0, 1, 1]
    for one in said:
        assert one["text"].endswith("it is so low hello and more never world")
        assert not one["cut"]
    assert said[0]["text"].startswith("For Paris:")
    deltas = "".join(one["text"] for one in told if one["event"] == "delta" and one["speaker"] == 0)
    assert deltas == 2 * ("For Paris:" + SPEECH)
    judged = [one for one in told if one["event"] == "judged"]
    assert [one["after"] for one in judged] == [0, 1, 2, 3, 4]
    for one in judged:
        assert all(sum(p) == pytest.approx(1) for p in [one["panel"], *one["judges"].values()])
        mean = [sum(p[i] for p in one["judges"].values()) / 2 for i in (0, 1)]
        assert one["panel"] == pytest.approx(mean)
    assert verdict["probabilities"] == judged[-1]["panel"]
    assert verdict["text"] == ASKED["answers"][verdict["answer"]]
    assert api.debater.state().in_use == 0


def test_quotes_are_checked_against_the_source(api: Api) -> None:
    first = next(one for one in api.events() if one["event"] == "said")
    assert first["quotes"] == [{"text": "low hello", "verified": True}, {"text": "never", "verified": False}]
    first = next(one for one in api.events(source="Another text.") if one["event"] == "said")
    assert [one["verified"] for one in first["quotes"]] == [False, False]
    assert next(one for one in api.events(source=None) if one["event"] == "said")["quotes"] == []


def test_an_answer_that_does_not_stream_is_the_same_debate(api: Api) -> None:
    told = [one for one in api.events() if one["event"] not in ("delta", "turn")]
    whole = api.client.chat.completions.create(**QUESTION, extra_body={"debate": ASKED}, seed=0)
    assert whole.choices[0].debate == told
    said = [one["text"] for one in told if one["event"] == "said"]
    assert whole.choices[0].message.content.count(said[0]) == 2
    assert whole.choices[0].message.content.endswith(
        f"Verdict: {told[-1]['text']} ({max(told[-1]['probabilities']):.0%})"
    )
    spent = whole.guidance_usage
    assert (
        whole.usage.completion_tokens
        == spent["strong"]["decode"]
        == sum(one["tokens"] for one in told if one["event"] == "said")
    )
    assert spent["one"]["prompt"] > 0


def test_fewer_turns_and_words_as_asked(api: Api) -> None:
    said = [one for one in api.events(turns=1, words=12) if one["event"] == "said"]
    assert [one["tokens"] for one in said] == [18, 18]


def test_judges_say_what_a_judge_says_of_the_same_transcript(api: Api) -> None:
    from trimtab.models.debating import Brief, Judge
    from trimtab.models.language import LanguageModel

    args = arguments()
    protocol = args.debates["duel"].protocol
    case = Case("asked", "Which city?", ("Paris", "Rome"), "A low hello.")
    transcript = protocol.begin(case)
    for _ in range(4):
        transcript = protocol.told(transcript, [protocol.asks(transcript)[0].start + SPEECH])
    reader = api.debater.judges[0].readers[0]

    class Tongue:
        def prompt(self, messages: list[dict[str, str]]) -> list[int]:
            return reader.ids(messages)

        def encode(self, text: str) -> list[int]:
            return list(reader.tokenizer(text, add_special_tokens=False)["input_ids"])

    lm = LanguageModel(tiny_llama(0, vocabulary=len(tokenizer())), ends=frozenset({END}), batch=2)
    (verdict,) = Judge(lm, Tongue(), protocol.wording)([Brief(case, render(transcript, protocol.wording))])
    told = api.events()[-1]
    assert told["judges"]["one"] == pytest.approx(verdict.probabilities, abs=1e-4)
    assert judge_messages(protocol.wording, case, "", swapped=True)[0]["content"].index("Rome") > 0


def test_the_two_of_a_beat_speak_at_once_and_a_plan_stays_hidden() -> None:
    args = arguments(kind="simultaneous", turns=1, plan=3, words=30)
    debater = opened(args)
    with serving(args, {"duel": debater}) as url:
        told = Api(url, debater).events()
    assert [one["event"] for one in told] == ["begin", "judged", "turn", "turn", "said", "said", "judged", "verdict"]


def test_members_answer_alone(api: Api) -> None:
    ids = [one.id for one in api.client.models.list()]
    assert ids == ["duel", "strong", "one", "two"]
    card = api.http.get("/v1/models/duel").json()["debate"]
    assert (card["debater"], card["judges"]) == ("strong", ["one", "two"])
    assert card["ranges"]["turns"] == {"min": 1, "max": 2, "default": 2, "step": 1}
    said = api.client.completions.create(model="strong", prompt="say:", max_tokens=200, temperature=0)
    assert said.choices[0].text == SPEECH
    assert len(api.client.completions.create(model="two", prompt="say:", max_tokens=3).choices) == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "debate: give two answers"),
        ({"debate": {"answers": ["a"]}}, 400, "debate.answers"),
        ({"debate": {"answers": ["a", " a "]}}, 400, "two different answers"),
        ({"debate": ASKED | {"turns": 3}}, 422, "debate.turns: should be 1 to 2 here"),
        ({"debate": ASKED | {"turns": 0}}, 400, "debate.turns"),
        ({"debate": ASKED | {"rounds": 1}}, 400, "debate.rounds"),
        ({"debate": ASKED, "n": 2}, 400, "held once"),
        ({"debate": ASKED, "guidance": {"alpha": 1}}, 400, "nothing guides"),
        ({"debate": ASKED, "model": "one"}, 400, "one is no debate; there: duel"),
    ],
)
def test_what_cannot_be_debated_is_refused(api: Api, body: dict[str, Any], status: int, said: str) -> None:
    answer = api.http.post("/v1/chat/completions", json=QUESTION | body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


def test_debates_answer_chats_only(api: Api) -> None:
    for path, body in (("completions", {"prompt": "a"}), ("score", {"prompt": "a", "completion": "b"})):
        answer = api.http.post(f"/v1/{path}", json={"model": "duel"} | body)
        assert (answer.status_code, "/v1/chat/completions" in answer.text) == (400, True)


def test_too_long_a_source_is_said_and_leaves_nothing(api: Api) -> None:
    answer = api.http.post("/v1/chat/completions", json=QUESTION | {"debate": ASKED | {"source": "low " * 4000}})
    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"]
    assert api.debater.state().in_use == 0


def test_who_leaves_in_mid_turn_frees_every_slot() -> None:
    args = arguments()
    debater = opened(args, kind=Slow)
    with serving(args, {"duel": debater}) as url:
        body = QUESTION | {"debate": ASKED, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line and any(
                    one["event"] == "delta" for one in json.loads(line[6:])["choices"][0].get("debate", ())
                ):
                    break
        until(lambda: all(map(idle, debater.members)))


def test_what_breaks_in_mid_debate_ends_it() -> None:
    args = arguments()
    debater = opened(args)

    async def main() -> list[Piece]:
        case = Case("asked", "Which city?", ("Paris", "Rome"))
        hearing, found = Hearing(debater, Debated(case, args.debates["duel"].protocol), 0), []
        async for piece in hearing.pieces():
            found.append(piece)
            if any(one["event"] == "said" for one in piece.told):
                await asyncio.to_thread(debater.judges[0].close)
        return found

    try:
        with pytest.raises(Exception, match="decoder stopped"):
            asyncio.run(main())
        assert idle(debater.members[0])
    finally:
        debater.close()

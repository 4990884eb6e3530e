"""What is answered, as the `openai` client reads it: text, log-probs, usage, seeds, guides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.decoding import ScriptedStepper, run
from tests.serving.kit import arguments, ensemble, llamas, serving, speller, tokenizer, until

from trimtab.alignment import Sampling
from trimtab.lm import row_seed
from trimtab.methods.guides.genarm import GenArm
from trimtab.models.asked import Asked
from trimtab.models.decode import Decoder

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "hi"}]
SAID = "Grüße und Küsse, 世界!"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    guide = {"kind": "genarm", "alpha": 0.5}
    duo = {"base": "base", "helpers": ["helper"], "guide": guide}
    args = arguments({"duo": duo, "tiny": {**duo, "base": "big", "helpers": ["small"]}})
    scripted = ensemble(
        {name: ScriptedStepper(speller(text), 3, 200) for name, text in (("base", SAID), ("helper", "Never!"))}
    )
    nets = llamas()
    tiny = ensemble({"big": nets["base"], "small": nets["helper"]})
    with serving(args, {"duo": scripted, "tiny": tiny}) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "duo", "messages": HI, "temperature": 0} | more)


def text(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(**{"model": "duo", "prompt": "say:", "temperature": 0, "max_tokens": 50} | more)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["duo", "tiny", "base", "helper", "big", "small"]
    assert client.models.retrieve("duo").ensemble["method"] == "genarm"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = chat(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", SAID, "stop")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "duo", "v1")
    own = tokenizer()
    prompt = own.apply_chat_template(HI, add_generation_prompt=True, return_dict=True)["input_ids"]
    count = len(own(SAID)["input_ids"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), count)
    assert answer.usage.total_tokens == len(prompt) + count
    assert answer.guidance_usage == {name: {"prompt": len(prompt), "decode": count} for name in ("base", "helper")}


def test_parts_of_a_message_and_developers_are_understood(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    usages = [chat(client, messages=given, max_tokens=1).usage.prompt_tokens for given in (messages, plain)]
    assert usages[0] == usages[1]


def test_lengths(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 5}):
        answer = chat(client, **limit)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)
    assert chat(client, max_tokens=4).choices[0].message.content == "Grü"


def test_log_probs_of_a_chat_are_those_of_the_fused_distribution_before_temperature(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, temperature=0.5, seed=1, max_tokens=4)
    content = answer.choices[0].logprobs.content
    sure, rest, width = 0.9, 0.1 / 261, 262
    weights = {"base": sure * rest**0.5, "helper": rest * sure**0.5, "other": rest * rest**0.5}
    total = weights["base"] + weights["helper"] + (width - 2) * weights["other"]
    assert content[0].token == content[0].top_logprobs[0].token == "G"
    assert content[0].logprob == pytest.approx(math.log(weights["base"] / total), abs=1e-4)
    assert content[0].top_logprobs[1].token == "N"
    assert content[0].top_logprobs[1].logprob == pytest.approx(math.log(weights["helper"] / total), abs=1e-4)
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    assert [token.token for token in content][2:] == ["bytes:\\xc3", "bytes:\\xbc"]
    assert chat(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client, max_tokens=1).choices[0].logprobs is None


def test_log_probs_of_completions_stand_side_by_side(client: openai.OpenAI) -> None:
    (choice,) = text(client, prompt="say:", logprobs=1, stop="ü").choices
    told = choice.logprobs
    assert (choice.text, told.tokens, told.text_offset) == ("Gr", ["G", "r"], [0, 1])
    assert [list(top) for top in told.top_logprobs] == [["G"], ["r"]]
    assert told.token_logprobs == [top[token] for token, top in zip(told.tokens, told.top_logprobs, strict=True)]
    (choice,) = text(client, prompt="say:", logprobs=0, model="helper").choices
    assert choice.text == "Never!"
    assert choice.logprobs.tokens == [*"Never!", "<|im_end|>"]
    like_chat = text(client, extra_body={"logprobs": True, "top_logprobs": 1}, max_tokens=2).choices[0].logprobs
    assert [token["token"] for token in like_chat.content] == ["G", "r"]


def test_echo_scores_a_prompt(client: openai.OpenAI, url: str) -> None:
    asked = {"model": "tiny", "prompt": ["hello", "lo, w"], "echo": True}
    alone = text(client, **asked, logprobs=2, max_tokens=0)
    more = text(client, **asked, logprobs=2, max_tokens=1)
    for zero, one, prompt in zip(alone.choices, more.choices, asked["prompt"], strict=True):
        assert (zero.text, zero.finish_reason) == (prompt, "length")
        assert zero.logprobs.token_logprobs[0] is zero.logprobs.top_logprobs[0] is None
        assert zero.logprobs.tokens == one.logprobs.tokens[:-1]
        assert zero.logprobs.token_logprobs[1:] == pytest.approx(one.logprobs.token_logprobs[1:-1], abs=1e-5)
        assert zero.logprobs.text_offset == [
            len("".join(zero.logprobs.tokens[:i])) for i in range(len(zero.logprobs.tokens))
        ]
        assert [len(top) >= 2 for top in zero.logprobs.top_logprobs[1:]] == [True] * (len(zero.logprobs.tokens) - 1)
    assert (alone.usage.completion_tokens, more.usage.completion_tokens) == (0, 2)
    scored = httpx.post(
        f"{url}/v1/score", json={"model": "tiny", "prompt": "hel", "completion": "lo"}, timeout=60
    ).json()
    assert scored["data"][0]["logprobs"] == pytest.approx(alone.choices[0].logprobs.token_logprobs[1:], abs=1e-4)
    plain = text(client, **asked, max_tokens=0)
    assert [choice.text for choice in plain.choices] == asked["prompt"]
    assert plain.choices[0].logprobs is None


def test_prompts_may_be_token_ids(client: openai.OpenAI) -> None:
    ids = tokenizer()("say:")["input_ids"]
    for prompt, count in ((ids, 1), ([ids, ids], 2), (["say:", "say:"], 2)):
        answer = text(client, prompt=prompt)
        assert [choice.text for choice in answer.choices] == [SAID] * count
        assert [choice.index for choice in answer.choices] == list(range(count))
        assert answer.usage.prompt_tokens == count * len(ids)


def test_stops_are_found_across_tokens_and_are_no_part_of_the_text(client: openai.OpenAI) -> None:
    for stop, left in ((["e und"], "Grüß"), (["世", "se"], "Grüße und Küs"), ("界!", SAID[:-2]), (["nowhere"], SAID)):
        (choice,) = text(client, stop=stop).choices
        assert (choice.text, choice.finish_reason) == (left, "stop")
    assert chat(client, stop="ß").choices[0].message.content == "Grü"


def test_a_seed_draws_the_same_again_whoever_is_beside(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "temperature": 1, "max_tokens": 8, "seed": 5}
    (alone,) = text(client, **asked).choices
    three = text(client, **asked, n=3).choices
    assert three[0].text == alone.text
    assert len({choice.text for choice in three}) == 3
    assert [choice.text for choice in text(client, **asked, n=3).choices] == [choice.text for choice in three]
    assert text(client, **asked | {"seed": 6}).choices[0].text != alone.text
    assert text(client, **asked | {"seed": -5}).choices[0].text != alone.text
    assert len({text(client, model="tiny", temperature=1, max_tokens=8).choices[0].text for _ in range(3)}) > 1


def test_samples_of_a_prompt_share_its_cost(client: openai.OpenAI) -> None:
    answer = text(client, model="tiny", temperature=1, n=3, max_tokens=4)
    assert answer.usage.prompt_tokens == len(tokenizer()("say:")["input_ids"])
    assert answer.guidance_usage["big"]["prompt"] == answer.usage.prompt_tokens
    assert answer.guidance_usage["big"]["decode"] == answer.usage.completion_tokens > 3


def test_top_k_and_penalties_reach_the_draw(client: openai.OpenAI) -> None:
    (greedy,) = text(client, model="tiny", max_tokens=6).choices
    (narrow,) = text(client, model="tiny", max_tokens=6, temperature=1.5, extra_body={"top_k": 1}).choices
    (nucleus,) = text(client, model="tiny", max_tokens=6, temperature=1.5, top_p=0).choices
    assert narrow.text == nucleus.text == greedy.text
    exclaims = {str(tokenizer()("!")["input_ids"][0]): 100}
    assert text(client, logit_bias=exclaims, max_tokens=4).choices[0].text == "!!!!"
    held = text(client, logit_bias=exclaims, max_tokens=4, presence_penalty=2, frequency_penalty=2)
    assert held.choices[0].text == "!!!!"


def test_unknown_fields_are_let_through_with_a_warning(client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    answer = chat(client, extra_body={"chat_template_kwargs": {}, "min_p": 0.1}, user="me", store=True)
    assert answer.choices[0].message.content == SAID
    until(lambda: "ignored 'chat_template_kwargs', 'min_p', 'store'" in caplog.text)


def guided(client: openai.OpenAI, **guidance: Any) -> str:
    return text(client, extra_body={"guidance": guidance}).choices[0].text


def test_guidance_by_request(client: openai.OpenAI) -> None:
    assert guided(client) == guided(client, alpha=0.2) == guided(client, method="none") == SAID
    assert guided(client, alpha=2) == guided(client, guides=[{"model": "helper", "weight": 2}]) == "Never!"
    assert guided(client, method="ensemble", weights=[1, 3]) == "Never!"
    assert text(client, extra_body={"guidance_alpha": 2}).choices[0].text == "Never!"
    assert text(client, extra_body={"guidance_alpha": 2, "guidance": {"alpha": 0.1}}).choices[0].text == SAID
    assert text(client, model="helper").choices[0].text == "Never!"
    assert text(client, model="base").choices[0].text == SAID


@pytest.mark.parametrize("temperature", [0, 1])
def test_no_method_is_the_base_alone_and_a_guide_is_what_the_decoder_makes_of_it(
    client: openai.OpenAI, temperature: float
) -> None:
    sampling, prompt = Sampling(max_new_tokens=8, temperature=temperature), tokenizer()("lo, w")["input_ids"]
    ends = frozenset({tokenizer().eos_token_id})

    def wanted(names: list[str], guide: Any) -> list[float]:
        nets = [llamas()[name] for name in names]
        decoder = Decoder(nets, ends=[ends] * len(nets), vocabulary=len(tokenizer()))
        (told,) = run(decoder, [Asked((prompt,) * len(nets), sampling, row_seed(3, "", 0), guide=guide)])
        return [one.logprob for one in told]

    asked = {"model": "tiny", "prompt": "lo, w", "temperature": temperature, "max_tokens": 8, "seed": 3, "logprobs": 0}
    none = text(client, **asked, extra_body={"guidance": {"method": "none"}}).choices[0].logprobs.token_logprobs
    assert none == pytest.approx(wanted(["base"], None), abs=1e-4)
    own = text(client, **asked).choices[0].logprobs.token_logprobs
    assert own == pytest.approx(wanted(["base", "helper"], GenArm(alpha=0.5)), abs=1e-4)
    big = text(client, **asked | {"model": "big"}).choices[0].logprobs.token_logprobs
    small = text(client, **asked | {"model": "small"}).choices[0].logprobs.token_logprobs
    assert big == none
    assert small == pytest.approx(wanted(["helper"], None), abs=1e-4)


def test_a_trace_says_who_said_what(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=3, extra_body={"guidance": {"alpha": 0.5, "trace": True}})
    (choice,) = answer.choices
    assert choice.logprobs is None
    sure, rest = math.log(0.9), math.log(0.1 / 261)
    for letter, one in zip("Gr", choice.trace, strict=False):
        assert (one["token"], one["source"], one["drafted"]) == (letter, "fused", False)
        assert one["weights"] == {"base": 1, "helper": 0.5}
        assert one["said"] == pytest.approx({"base": sure, "helper": rest}, abs=1e-4)
    alone = chat(client, max_tokens=3, extra_body={"guidance": {"method": "none", "trace": True}}).choices[0].trace
    assert (alone[0]["source"], alone[0]["weights"]) == ("base", {"base": 1})
    assert alone[0]["said"] == pytest.approx({"base": sure}, abs=1e-4)


def test_scores_of_given_completions(url: str) -> None:
    asked = {"model": "duo", "messages": HI, "completion": ["Gr", "Never!"], "ended": True}
    answer = httpx.post(f"{url}/v1/score", json=asked, timeout=60)
    assert answer.headers["x-ensemble-version"] == answer.json()["system_fingerprint"] == "v1"
    first, second = answer.json()["data"]
    sure, rest = math.log(0.9), math.log(0.1 / 261)
    assert first["tokens"] == ["G", "r", "<|im_end|>"]
    assert first["models"]["base"]["logprobs"] == pytest.approx([sure, sure, rest], abs=1e-4)
    assert first["models"]["helper"]["total"] == pytest.approx(3 * rest, abs=1e-3)
    assert second["models"]["helper"]["logprobs"] == pytest.approx([sure] * 7, abs=1e-4)
    assert first["weights"] == [{"base": 1, "helper": 0.5}] * 3
    assert first["total"] == pytest.approx(sum(first["logprobs"]))
    strong = httpx.post(f"{url}/v1/score", json=asked | {"guidance": {"alpha": 5}}, timeout=60).json()["data"]
    assert strong[1]["total"] > second["total"]
    ids = tokenizer()("Never!")["input_ids"]
    by_ids = httpx.post(f"{url}/v1/score", json=asked | {"completion": ids, "ended": False}, timeout=60).json()["data"]
    assert by_ids[0]["token_ids"] == ids
    assert by_ids[0]["logprobs"] == pytest.approx(second["logprobs"][:-1], abs=1e-5)


def test_request_ids_come_back(url: str) -> None:
    for given in ("my-id-1", None, "x" * 200):
        answer = httpx.get(f"{url}/health", headers={"x-request-id": given} if given else {}, timeout=60)
        told = answer.headers["x-request-id"]
        assert told == given if given == "my-id-1" else 0 < len(told) <= 64


def test_what_is_counted(url: str, client: openai.OpenAI) -> None:
    def counted(name: str) -> float:
        lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"trimtab_{name} ")), 0.0)

    names = {
        'requests_total{model="duo",path="/v1/completions",status="200"}': 1,
        'requests_total{model="",path="/v1/completions",status="404"}': 1,
        'tokens_total{ensemble="duo",kind="decode",model="helper"}': 5,
        'tokens_total{ensemble="duo",kind="prompt",model="base"}': len(tokenizer()("say:")["input_ids"]),
        'time_to_first_token_seconds_count{model="duo"}': 1,
        'time_per_token_seconds_count{model="duo"}': 1,
    }
    before = {name: counted(name) for name in names}
    text(client, max_tokens=5)
    with pytest.raises(openai.NotFoundError):
        text(client, model="nobody")
    assert {name: counted(name) - before[name] for name in names} == names
    assert counted('slots{ensemble="duo"}') == 3
    assert counted('slots_in_use{ensemble="duo"}') == counted('completions_in_flight{ensemble="duo"}') == 0

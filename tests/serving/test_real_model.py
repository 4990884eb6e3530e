"""The shipped serve file with the models that it names: what comes out is what the networks and the formula say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from tests.serving.kit import serving

from trimtab.models.language import load_language
from trimtab.models.network import load_tokenizer
from trimtab.models.source import model_folder
from trimtab.serving.config import GuidedArgs
from trimtab.serving.file import load_serve
from trimtab.serving.replica import opened

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[2] / "serve" / "contrastive.yaml"
NAME, PROMPT = "contrast-smol", "The capital of France is"


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> GuidedArgs:
    app = "applications.0.args"
    overrides = [
        f"{app}.models.smol-22.dtype=float32",
        f"{app}.models.smol={{source: builtin:smollm2-135m, dtype: float32}}",
    ]
    return load_serve(FILE, [*overrides, f"{app}.storage={tmp_path_factory.mktemp('real')}"]).args["contrastive"]


@pytest.fixture(scope="module")
def client(args: GuidedArgs) -> Iterator[openai.OpenAI]:
    with serving(args, {NAME: opened(args, NAME)}) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def logprobs(args: GuidedArgs, name: str, ids: list[int]) -> torch.Tensor:
    """logprobs_TV of a plain forward."""
    model = load_language(args.models[name], args.cache)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_the_base_alone_is_the_network_and_the_ensemble_is_the_formula(args: GuidedArgs, client: openai.OpenAI) -> None:
    tokenizer = load_tokenizer(model_folder(args.models["smol"].source, args.cache))
    prompt = tokenizer(PROMPT)["input_ids"]
    asked = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 5}
    alone = client.completions.create(**asked, extra_body={"guidance": {"method": "none"}})
    told = alone.choices[0].logprobs
    assert "Paris" in alone.choices[0].text
    ids = prompt + tokenizer.convert_tokens_to_ids(
        [token.replace(" ", "Ġ").replace("\n", "Ċ") for token in told.tokens]
    )
    base_TV = logprobs(args, "smol", ids)[len(prompt) - 1 : -1]
    assert base_TV.argmax(-1).tolist() == ids[len(prompt) :]
    assert told.token_logprobs == pytest.approx(base_TV.amax(-1).tolist(), abs=1e-3)
    guided = client.completions.create(**asked | {"max_tokens": 1}).choices[0].logprobs
    base_V, weak_V = base_TV[0], logprobs(args, "smol-22", prompt)[-1]
    fused_V = (
        (1.5 * base_V - 0.5 * weak_V).masked_fill(base_V < base_V.max() + math.log(0.1), -torch.inf).log_softmax(-1)
    )
    likely = fused_V.topk(3)
    for token, value in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
        if math.isfinite(value):
            assert guided.top_logprobs[0][tokenizer.decode([token])] == pytest.approx(value, abs=1e-3)
    assert guided.token_logprobs[0] == pytest.approx(float(fused_V.max()), abs=1e-3)


def test_a_chat_streams_and_its_usage_is_that_of_the_tokenizer(args: GuidedArgs, client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a color. 🎨"}]
    asked = {"model": NAME, "messages": messages, "max_tokens": 20, "seed": 1, "temperature": 0.7}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    tokenizer = load_tokenizer(model_folder(args.models["smol"].source, args.cache))
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chunks[-1].usage.prompt_tokens == len(ids)
    assert whole.system_fingerprint == chunks[0].system_fingerprint
    assert len(whole.system_fingerprint) == 16

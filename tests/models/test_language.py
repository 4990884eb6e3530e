"""Language models scored and continued: against plain forwards, alone and in company, cut, with sliding attention."""

from __future__ import annotations

import random

import pytest
import torch
from tests.conftest import save_tiny_llama

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.lm import row_seed
from trimtab.models import language
from trimtab.models.language import LanguageModel, end_ids, load_language, made_by, model_identity
from trimtab.models.network import load_network, load_tokenizer
from trimtab.parts import ModelSpec

pytestmark = pytest.mark.slow

VOCABULARY = 27
END = 2


def spec_of(tiny, **fields):
    return ModelSpec(source=str(tiny.model), dtype="float32", **fields)


def opened(network, batch=64):
    return LanguageModel(network, ends=frozenset({END}), batch=batch)


@pytest.fixture(scope="module")
def network(tiny):
    return load_language(spec_of(tiny), tiny.root)


@pytest.fixture(scope="module")
def sliding():
    """Two layers that see four tokens, two that see all, and logits squashed behind the head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        num_hidden_layers=4,
        head_dim=16,
        sliding_window=4,
        attn_logit_softcapping=None,
        final_logit_softcapping=3.0,
        initializer_range=0.2,
        pad_token_id=1,
        eos_token_id=END,
        bos_token_id=None,
        **sizes,
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config).eval()


def texts(count, seed=0, longest=9):
    """Prompts and completions of all lengths."""
    draw = random.Random(seed)
    some = lambda most: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, most))]  # noqa: E731
    return [some(longest) for _ in range(count)], [some(longest) for _ in range(count)]


def plain_scores(network, prompt, completion):
    """log p of the completion by one forward of one row."""
    with torch.inference_mode():
        logprobs = network(torch.tensor([prompt + completion])).logits[0].float().log_softmax(-1)
    return [logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)]


def plain_greedy(network, prompt, steps):
    """The likeliest continuation, every step from the beginning, without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] == END:
                break
    return ids[len(prompt) :]


def close(ours, theirs):
    return all(a == pytest.approx(b, abs=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("which", ["network", "sliding"])
def test_scores_are_those_of_a_plain_forward_whatever_is_in_the_batch(which, request):
    network = request.getfixturevalue(which)
    prompts, completions = texts(23)
    expected = [plain_scores(network, p, c) for p, c in zip(prompts, completions, strict=True)]
    for batch in (1, 7, 64):
        scores = opened(network, batch).score(prompts, completions)
        assert [s.ids for s in scores] == completions
        assert close([s.logprobs for s in scores], expected)


def test_batches_of_scores_keep_within_the_logits_that_there_may_be(network, monkeypatch):
    prompts, completions = texts(23)
    before = opened(network).score(prompts, [*completions[:-1], []])
    assert before[-1].logprobs == []
    widths = []
    hook = network.get_output_embeddings().register_forward_hook(lambda m, i, o: widths.append(o.shape[:-1].numel()))
    monkeypatch.setattr(language, "LOGITS", 20 * VOCABULARY)
    after = opened(network).score(prompts, [*completions[:-1], []])
    hook.remove()
    assert max(widths) <= 20
    assert sum(widths) == sum(map(len, completions[:-1]))
    assert close([s.logprobs for s in after], [s.logprobs for s in before])


def test_next_log_probs_are_those_of_the_last_token(network):
    contexts, _ = texts(9)
    ours = opened(network, 4).next_logprobs(contexts)
    for context, row in zip(contexts, ours, strict=True):
        with torch.inference_mode():
            assert (network(torch.tensor([context])).logits[0, -1].log_softmax(-1) - row).abs().max() < 1e-5


@pytest.mark.parametrize("which", ["network", "sliding"])
def test_the_likeliest_tokens_are_those_of_forwards_without_a_cache(which, request):
    network = request.getfixturevalue(which)
    prompts, _ = texts(13)
    made = opened(network, 5).generate(prompts, Sampling(temperature=0, max_new_tokens=12), [0] * 13)
    assert [g.ids for g in made] == [plain_greedy(network, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("layers", [2, (0, 3), (3, 1, 0)])
def test_a_cut_network_keeps_its_cache_in_order(tiny, layers):
    network = load_language(spec_of(tiny, layers=layers), tiny.root)
    prompts, _ = texts(5)
    made = opened(network).generate(prompts, Sampling(temperature=0, max_new_tokens=12), [0] * 5)
    assert [g.ids for g in made] == [plain_greedy(network, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.7, "top_k": 20}, {"top_p": 0.8}])
def test_a_row_is_continued_alike_alone_and_in_any_company(network, fields):
    """40 rows of 10 prompts; nearly all end before the last step, so the batch shrinks on the way."""
    prompts = [prompt for prompt in texts(10)[0] for _ in range(4)]
    seeds = [row_seed(3, f"r{i // 4}", i % 4) for i in range(40)]
    sampling = Sampling(max_new_tokens=40, **fields)
    alone = opened(network, 1).generate(prompts, sampling, seeds)
    assert sum(g.ended for g in alone) > 15
    assert len({len(g.ids) for g in alone}) > 10
    assert len({tuple(g.ids) for g in alone}) > 30
    order = random.Random(1).sample(range(40), 40)
    for batch in (7, 64):
        shuffled = opened(network, batch).generate([prompts[i] for i in order], sampling, [seeds[i] for i in order])
        for i, g in zip(order, shuffled, strict=True):
            assert (g.ids, g.ended) == (alone[i].ids, alone[i].ended)
            assert g.logprobs == pytest.approx(alone[i].logprobs, abs=1e-5)


def test_log_probs_are_the_models_own_and_answers_end_with_an_end_token(network):
    prompts, _ = texts(30)
    made = opened(network).generate(prompts, Sampling(temperature=2.0, top_k=9, max_new_tokens=20), list(range(30)))
    scores = opened(network).score(prompts, [g.ids for g in made])
    assert close([g.logprobs for g in made], [s.logprobs for s in scores])
    for g in made:
        assert g.ended == (g.ids[-1] == END)
        assert g.ended or len(g.ids) == 20
        assert END not in g.ids[:-1]


def test_tokens_come_as_often_as_the_model_says(network):
    prompt, count = [5, 9, 4], 4000
    made = opened(network, 1000).generate([prompt] * count, Sampling(max_new_tokens=1), list(range(count)))
    often_V = torch.bincount(torch.tensor([g.ids[0] for g in made]), minlength=VOCABULARY) / count
    assert (often_V - opened(network).next_logprobs([prompt])[0].exp()).abs().sum() / 2 < 0.04


def test_what_ends_an_answer_is_named_by_the_tokenizer_and_the_generation_settings(tiny):
    tokenizer, network = load_tokenizer(tiny.model), load_language(spec_of(tiny), tiny.root)
    assert end_ids(network, tokenizer) == {END}
    network.generation_config.eos_token_id = [7, 9]
    assert end_ids(network, tokenizer) == {END, 7, 9}
    lm = LanguageModel(network, ends=end_ids(network, tokenizer), batch=8)
    made = lm.generate([[3]] * 40, Sampling(max_new_tokens=30), list(range(40)))
    assert {g.ids[-1] for g in made if g.ended} == {END, 7, 9}


def test_nothing_stands_behind_an_empty_prompt_or_beyond_the_models_reach(network):
    lm = opened(network)
    for call in (lm.next_logprobs, lambda p: lm.score(p, [[3]] * 2), lambda p: lm.generate(p, Sampling(), [0, 0])):
        with pytest.raises(ModelError, match="prompt 1 has no token"):
            call([[3], []])
    with pytest.raises(ModelError, match="a prompt of 50 tokens and 24 new ones: the model reads 64"):
        lm.generate([[3] * 50], Sampling(max_new_tokens=24), [0])


def test_a_classifier_is_no_language_model(tiny, tmp_path):
    load_network(tiny.spec().model, tmp_path, n_classes=2).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match="lack lm_head.weight; is it a language model"):
        load_language(ModelSpec(source=str(tmp_path / "classifier")), tmp_path)


def test_identity_is_weights_layers_and_dtype(tiny, tmp_path):
    save_tiny_llama(tmp_path / "same")
    (tmp_path / "same" / "README.md").write_text("of no matter")
    save_tiny_llama(tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    spec = spec_of(tiny)
    same, other = (spec.model_copy(update={"source": str(tmp_path / name)}) for name in ("same", "other"))
    assert model_identity(same, tmp_path) == model_identity(spec, tmp_path)
    assert model_identity(spec_of(tiny, layers=2), tmp_path) == model_identity(spec_of(tiny, layers=(0, 1)), tmp_path)
    different = [spec, other, spec_of(tiny, layers=2), spec_of(tiny, layers=(1, 0))]
    different += [spec.model_copy(update={"dtype": "bfloat16"})]
    assert len({model_identity(s, tmp_path) for s in different}) == 5


def test_the_model_that_a_stage_made_takes_the_place_of_the_specs(tiny, tmp_path):
    spec = spec_of(tiny, layers=2)
    assert made_by(None, spec) == spec
    assert made_by(tmp_path, spec) == ModelSpec(source=str(tmp_path / "model"), dtype="float32")

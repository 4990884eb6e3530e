"""Networks cut, halved, frozen and saved: a tiny Llama in float32."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import ModelError
from trimtab.models.features import compute_states, encode, left_padded
from trimtab.models.network import (
    Halves,
    keep_layers,
    load_network,
    load_tokenizer,
    read_card,
    save_network,
    suit_attention,
    torch_dtype,
    train_upper,
)
from trimtab.parts import FeatureSpec, ModelSpec

pytestmark = pytest.mark.slow

TEXTS = ["warm", "cold harsh road", "bright calm river table lamp", "dim dim stone cup cup door window sour"]


@pytest.fixture
def network(tiny, tmp_path):
    """A classifier whose head is not zero."""
    model = load_network(tiny.spec().model, tmp_path, n_classes=2).eval()
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    return model


def logits(model, ids, name="input_ids"):
    padded, mask = left_padded(ids)
    with torch.inference_mode():
        return model(**{name: padded}, attention_mask=mask).logits


@pytest.mark.parametrize("upper", [1, 2, 3])
def test_halves_on_cached_states_answer_as_the_whole_does(tiny, tmp_path, network, upper):
    ids = encode(load_tokenizer(tiny.model), TEXTS, 16)
    assert len({len(row) for row in ids}) == 4
    whole = logits(network, ids)
    spec = FeatureSpec(model=tiny.spec().model, without_top=upper, keep="tokens")
    trunk = load_network(spec.model, tmp_path)
    keep_layers(trunk, list(range(4 - upper)))
    states = compute_states(trunk, ids, spec, batch=3, tick=lambda *_: None)
    halves = Halves(network, upper)
    assert len(network.model.layers) == upper
    assert (logits(network, states, "inputs_embeds") - whole).abs().max() < 1e-5
    assert (logits(halves.join(), ids) - whole).abs().max() == 0


def test_joined_halves_have_the_names_and_weights_of_before(network):
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    config = network.config.to_dict()
    halves = Halves(network, 2)
    assert network.config.num_hidden_layers == 2
    after = halves.join().state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert network.config.to_dict() == config


def test_plain_attention_on_short_rows_answers_the_same_and_is_not_saved(tiny, tmp_path, network):
    ids = encode(load_tokenizer(tiny.model), TEXTS, 16)
    before = logits(network, ids)
    suit_attention(network, 200)
    assert network.config._attn_implementation == "sdpa"
    suit_attention(network, 8)
    assert network.config._attn_implementation == "eager"
    assert (logits(network, ids) - before).abs().max() < 1e-5
    network.save_pretrained(tmp_path / "saved")
    assert "eager" not in (tmp_path / "saved" / "config.json").read_text()


def test_only_the_upper_layers_the_norm_and_the_head_are_trained(network):
    train_upper(network, 1)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert all(name.startswith(("model.layers.3.", "model.norm", "score")) for name in trained)
    assert {"model.norm.weight", "score.weight", "model.layers.3.mlp.up_proj.weight"} <= trained


@pytest.mark.parametrize("upper", [4, 5])
def test_a_trunk_must_be_left(network, upper):
    with pytest.raises(ModelError, match=f"tune.layers is {upper}, the model has 4; use kind: full"):
        train_upper(network, upper)


def test_a_prefix_or_a_list_of_layers_is_kept(tiny, tmp_path):
    whole = load_network(tiny.spec().model, tmp_path)
    for layers, kept in ((2, [0, 1]), ((0, 3), [0, 3]), ((2, 1), [2, 1])):
        model = load_network(ModelSpec(source=str(tiny.model), layers=layers, dtype="float32"), tmp_path)
        assert model.config.num_hidden_layers == len(model.layers) == 2
        for mine, index in zip(model.layers, kept, strict=True):
            assert torch.equal(mine.mlp.up_proj.weight, whole.layers[index].mlp.up_proj.weight)


@pytest.mark.parametrize("layers", [5, (0, 4), (1, 1), (-1,), ()])
def test_layers_that_are_not_there_are_refused(tiny, tmp_path, layers):
    with pytest.raises(ModelError, match="llama has layers 0 to 3; asked to keep"):
        load_network(ModelSpec(source=str(tiny.model), layers=layers), tmp_path)


def test_the_head_starts_at_zero_whatever_the_folder_held(tiny, tmp_path, network):
    save_network(network, tmp_path / "two", base=tiny.model, card=_card(tiny))
    three = load_network(ModelSpec(source=str(tmp_path / "two")), tmp_path, n_classes=3)
    assert three.score.weight.shape == (3, 32)
    assert three.score.weight.count_nonzero() == 0
    assert three.config.num_labels == 3


def _card(tiny):
    return {"n_classes": 2, "spec": tiny.spec().model_dump(mode="json")}


def test_a_saved_folder_has_a_tokenizer_and_a_card(tiny, tmp_path, network):
    save_network(network, tmp_path / "saved", base=tiny.model, card=_card(tiny))
    assert load_tokenizer(tmp_path / "saved").padding_side == "left"
    assert read_card(tmp_path / "saved") == _card(tiny)
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_a_tokenizer_without_padding_takes_its_end_token_or_is_refused(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny.model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "end")
    assert load_tokenizer(tmp_path / "end").pad_token == "[EOS]"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(ModelError, match="neither pad_token nor eos_token"):
        load_tokenizer(tmp_path / "none")


def test_precision_by_name():
    assert torch_dtype("float32") == torch.float32
    assert torch_dtype("bfloat16") == torch.bfloat16
    assert torch_dtype("auto") in (torch.float32, torch.bfloat16)


def test_an_architecture_without_layers_of_its_own_is_refused():
    from transformers import GPT2Config, GPT2Model

    with pytest.raises(ModelError, match="GPT2Model: layers can only be cut"):
        keep_layers(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8, n_positions=8)), [0])

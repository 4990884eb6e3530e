"""Prompts and completions as tokens: where completions begin, what ends them, what is cut, dropped and counted."""

from __future__ import annotations

import pytest

from trimtab.data.rendering import prompt_tokens, render, render_all, tokenizer_identity
from trimtab.data.tables import Completion
from trimtab.errors import ModelError

pytestmark = pytest.mark.slow

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASK = [{"role": "user", "content": "is the soup cold"}]
TEXTS = ["the soup was cold", "is the soup cold", "the soup wasps", "so it was", "yes no"]


def bytes_tokenizer(template=CHAT, **fields):
    """A byte-level BPE tokenizer with a few merges and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    usual = {"eos_token": "<end>", "pad_token": "<pad>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **(usual | fields))


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer()


def decoded(tokenizer, prompt, text, *, ended=True, max_length=99):
    shown = render(tokenizer, prompt, Completion(text, ended), max_length=max_length)
    return tokenizer.decode(shown.prompt_ids), tokenizer.decode(shown.completion_ids)


def test_a_text_goes_on_and_ends_with_the_end_token_exactly_if_it_is_whole(tokenizer):
    assert decoded(tokenizer, "the soup was", " cold") == ("the soup was", " cold<end>")
    assert decoded(tokenizer, "the soup was", " cold", ended=False) == ("the soup was", " cold")
    assert decoded(tokenizer, "the soup was", " cold<end>") == ("the soup was", " cold<end>")
    assert decoded(tokenizer, "the soup was", "") == ("the soup was", "<end>")


def test_a_tokenizer_that_adds_an_end_token_by_itself_adds_none_to_what_is_cut_short():
    from tokenizers.processors import TemplateProcessing

    adding = bytes_tokenizer()
    end = ("<end>", adding.eos_token_id)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[end])
    assert adding("so")["input_ids"][-1] == adding.eos_token_id
    assert decoded(adding, "the soup was", " cold", ended=False) == ("the soup was", " cold")
    assert decoded(adding, "the soup was", " cold") == ("the soup was", " cold<end>")
    assert adding.decode(prompt_tokens(adding, "so")) == "so"


def test_messages_are_written_by_the_chat_template(tokenizer):
    asked = "<user>is the soup cold<end>\n<assistant>"
    assert tokenizer.decode(prompt_tokens(tokenizer, ASK)) == asked
    assert decoded(tokenizer, ASK, "yes") == (asked, "yes<end>\n")
    assert decoded(tokenizer, ASK, "yes", ended=False) == (asked, "yes")
    assert decoded(tokenizer, ASK, "yes ", ended=False) == (asked, "yes ")
    longer = [*ASK, {"role": "assistant", "content": "no"}, *ASK]
    assert decoded(tokenizer, longer, "yes")[0] == f"{asked}no<end>\n{asked}"


def test_conversations_begin_where_trl_lets_them_begin(tokenizer):
    from trl.data_utils import _tokenize, common_prefix_length

    for template in (CHAT, CHAT.replace("<assistant>{% endif", "<assistant>so{% endif")):
        tokenizer = bytes_tokenizer(template)
        alone = _tokenize(tokenizer, ASK, add_generation_prompt=True)["input_ids"]
        whole = _tokenize(tokenizer, [*ASK, {"role": "assistant", "content": "yes no"}])["input_ids"]
        begin = common_prefix_length(alone, whole)
        shown = render(tokenizer, ASK, Completion("yes no"), max_length=999)
        assert (shown.prompt_ids, shown.completion_ids) == (alone[:begin], whole[begin:])
        assert shown.merged == (template != CHAT)


def test_tokens_that_merge_over_the_boundary_belong_to_the_completion_and_are_counted(tokenizer):
    shown = render(tokenizer, "the soup wa", Completion("s cold", ended=False), max_length=99)
    assert shown.merged
    assert (tokenizer.decode(shown.prompt_ids), tokenizer.decode(shown.completion_ids)) == ("the soup", " was cold")
    apart = render(tokenizer, "the soup was", Completion(" cold", ended=False), max_length=99)
    assert not apart.merged
    assert apart.ids == shown.ids
    _, counts = render_all(tokenizer, [("the soup wa", "s cold", True), ("so", " it", True)], max_length=99)
    assert counts["merged_boundary"] == 1


def test_the_mask_marks_the_completion(tokenizer):
    shown = render(tokenizer, "the soup was", Completion(" cold"), max_length=99)
    assert len(shown.mask) == len(shown.ids)
    assert [token for token, kept in zip(shown.ids, shown.mask, strict=True) if kept] == shown.completion_ids
    assert sum(shown.mask) == 2


def test_what_is_too_long_is_cut_at_the_end_or_dropped_and_counted(tokenizer):
    whole = render(tokenizer, "the soup was", Completion(" cold so it was"), max_length=99)
    n = len(whole.prompt_ids)
    for room in range(1, len(whole.completion_ids) + 1):
        cut = render(tokenizer, "the soup was", Completion(" cold so it was"), max_length=n + room)
        assert (cut.prompt_ids, cut.completion_ids) == (whole.prompt_ids, whole.completion_ids[:room])
        assert cut.truncated == len(whole.completion_ids) - room
    assert render(tokenizer, "the soup was", Completion(" cold"), max_length=n) is None
    assert render(tokenizer, "the soup was", Completion("", ended=False), max_length=99) is None
    assert render(tokenizer, ASK, {"text": " ", "ended": False}, max_length=99) is None


def test_counts_say_what_became_of_every_row(tokenizer):
    n = len(prompt_tokens(tokenizer, "the soup was"))
    asked = [
        ("the soup was", " cold", True),
        ("the soup was", " cold so it was", True),
        ("the soup was", "", False),
        ("the soup was cold so it was", " so", True),
    ]
    rendered, counts = render_all(tokenizer, asked, max_length=n + 2)
    assert [one is not None for one in rendered] == [True, True, False, False]
    assert counts == {
        "rows": 2,
        "truncated": 1,
        "dropped_long_prompt": 1,
        "dropped_empty": 1,
        "merged_boundary": 0,
        "supervised_tokens": 4,
    }


def test_what_the_tokenizer_lacks_is_named():
    with pytest.raises(ModelError, match="no chat template, so it cannot read messages"):
        render(bytes_tokenizer(None), ASK, Completion("yes"), max_length=99)
    with pytest.raises(ModelError, match="no eos_token"):
        render(bytes_tokenizer(eos_token=None), "so", Completion(" it"), max_length=99)
    assert render(bytes_tokenizer(eos_token=None), "so", Completion(" it", ended=False), max_length=99) is not None


def test_identity_survives_saving_and_padding_and_sees_everything_else(tmp_path):
    from trimtab.models.network import load_tokenizer

    plain = bytes_tokenizer(pad_token=None)
    plain.save_pretrained(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.pad_token == "<end>"
    loaded(["so it was", "so"], padding=True, truncation=True, max_length=2)
    loaded.save_pretrained(tmp_path / "b")
    assert tokenizer_identity(loaded) == tokenizer_identity(plain)
    others = {
        "chat template": bytes_tokenizer(CHAT.replace("<end>", "")),
        "special tokens": bytes_tokenizer(eos_token="<user>"),
        "vocabulary": bytes_tokenizer(),
    }
    others["vocabulary"].add_tokens(["brand-new"])
    for what, other in others.items():
        assert tokenizer_identity(other) != tokenizer_identity(plain), what

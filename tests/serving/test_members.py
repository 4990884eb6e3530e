"""How models read prompts: templates of their own, none, or another; and what tokens are by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.serving.kit import END, saved, tokenizer

from trimtab.serving.answer import Given, Refused
from trimtab.serving.config import Member
from trimtab.serving.members import Reader
from trimtab.serving.text import Tokens

pytestmark = pytest.mark.slow

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "again"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "tiny")


def shown(reader: Reader, prompt: object) -> str:
    return reader.tokenizer.decode(reader.ids(prompt))


def test_a_chat_by_its_own_template_by_none_and_by_another(folder: Path, tmp_path: Path) -> None:
    own = Reader.of("own", Member(source=str(folder)), folder)
    assert shown(own, CHAT[1:2]) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    plain = Reader.of("plain", Member(source=str(folder), template="plain"), folder)
    assert shown(plain, CHAT) == "Be kind.\n\nUser: hello\n\nAssistant: hi\n\nUser: again\n\nAssistant:"
    file = tmp_path / "short.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    other = Reader.of("other", Member(source=str(folder), template=file), folder)
    assert shown(other, CHAT) == "[Be kind.][hello][hi][again]"
    for reader in (own, plain, other):
        assert shown(reader, "hello") == "hello"
        assert reader.ids([1, 2]) == [1, 2]


def test_a_model_without_a_template_reads_text_only(folder: Path) -> None:
    reader = Reader.of("bare", Member(source=str(folder)), folder)
    reader.tokenizer.chat_template = None
    assert reader.ids("hello")
    with pytest.raises(Refused, match="bare cannot read this.*no chat template") as caught:
        reader.ids(CHAT)
    assert caught.value.refusal.status == 400


def test_completions_behind_prompts(folder: Path) -> None:
    reader = Reader.of("own", Member(source=str(folder)), folder)
    prompt, given = reader.given("hel", Given("lo w", ended=True))
    assert (reader.tokenizer.decode(prompt), reader.tokenizer.decode(given)) == ("hel", "lo w<|im_end|>")
    prompt, given = reader.given("he", Given("l"))
    assert (prompt, reader.tokenizer.decode(given)) == ([], "hel")
    assert reader.given([1, 2], Given([3], ended=True)) == ([1, 2], [3, END])
    prompt, given = reader.given(CHAT[1:2], Given("hi", ended=False))
    assert (prompt, reader.tokenizer.decode(given)) == (reader.ids(CHAT[1:2]), "hi")


def test_tokens_of_bytes() -> None:
    own = tokenizer()
    tokens = Tokens(own)
    ids = own("hello wü")["input_ids"]
    assert [tokens[i][1] for i in ids] == ["hel", "lo", " w", "bytes:\\xc3", "bytes:\\xbc"]
    assert b"".join(tokens[i][0] for i in ids).decode() == "hello wü"
    assert tokens[END] == (b"<|im_end|>", "<|im_end|>")
    assert tokens.decode([*ids, END]) == "hello wü"


def test_tokens_of_other_kinds() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = {"<unk>": 0, "▁he": 1, "llo": 2, "<0xC3>": 3, "<0xBC>": 4}
    backend = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = Tokens(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert [tokens[i] for i in (1, 2, 3)] == [(b" he", " he"), (b"llo", "llo"), (b"\xc3", "bytes:\\xc3")]
    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    assert Tokens(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))[1] == (b"one", "one")

"""Ensembles behind a real HTTP server: a tokenizer of bytes, networks that say what they are told, tiny random ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from tests.decoding import ScriptedStepper, tiny_llama
from tests.ports import free_port
from torch import Tensor

from trimtab.lm import ScriptedLM
from trimtab.models.decode import Decoder
from trimtab.models.llama import LlamaStepper
from trimtab.models.stepper import Read, Stepper
from trimtab.serving.config import GuidedArgs
from trimtab.serving.engine import Engine
from trimtab.serving.members import Reader
from trimtab.serving.replica import Replica
from trimtab.serving.tokenwise import Tokenwise
from trimtab.serving.web import web

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
END = 261
"""The token that ends an answer."""
SPELLING = ":\n"
"""Behind the last of these characters a network that spells begins."""


def tokenizer():
    """Bytes, a few pairs of them, and the marks of chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("l", "o"), ("h", "e"), ("he", "l"), ("Ġ", "w")]
    vocabulary = {text: i for i, text in enumerate([*letters, *(a + b for a, b in pairs)])}
    backend = Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_start|>", chat_template=TEMPLATE
    )


def speller(text: str, *, sure: float = 0.9) -> ScriptedLM:
    """A network that spells a text behind the prompt and ends; the rest of its mass is even."""
    own = tokenizer()
    said, width = own(text)["input_ids"], len(own)
    starts = set(own(SPELLING)["input_ids"])

    def rule(context: tuple[int, ...]) -> list[float]:
        begun = next((i for i in range(len(context)) if context[len(context) - 1 - i] in starts), len(context))
        row = torch.full((width,), (1 - sure) / (width - 1))
        row[said[begun] if begun < len(said) else END] = sure
        return row.log().tolist()

    return ScriptedLM(rule, end_ids=frozenset({END}))


class Slow(ScriptedStepper):
    """Takes its time."""

    def read(self, rows: Read, *, last: int = 1) -> Tensor:
        time.sleep(0.02)
        return super().read(rows, last=last)


def idle(one: Tokenwise) -> bool:
    """Whether no slot is taken, and nobody waits."""
    state = one.state()
    return (state.in_use, state.waiting) == (0, 0)


def ensemble(steppers: Mapping[str, Stepper], *, longest: int = 10_000, **more: Any) -> Tokenwise:
    """Steppers by name, the base first, all with the one tokenizer."""
    own = tokenizer()
    ends = [frozenset({END})] * len(steppers)
    decoder = Decoder(list(steppers.values()), ends=ends, vocabulary=len(own))
    return Tokenwise([Reader(name, own) for name in steppers], Engine(decoder), version="v1", longest=longest, **more)


def llamas(slots: int = 4) -> dict[str, Stepper]:
    """Two random networks of Llama's shape, with the tokenizer's vocabulary."""
    width = len(tokenizer())
    return {
        "base": LlamaStepper(tiny_llama(0, vocabulary=width), slots, 128),
        "helper": LlamaStepper(tiny_llama(1, layers=1, vocabulary=width), slots, 128),
    }


def saved(folder: Path, *, layers: int = 2) -> Path:
    """A folder that from_pretrained loads: such a network, which reads long texts, and the tokenizer."""
    own = tokenizer()
    model = tiny_llama(layers, layers=layers, vocabulary=len(own))
    model.config.max_position_embeddings = 16_384
    model.generation_config.eos_token_id = END
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def arguments(ensembles: dict[str, Any], **more: Any) -> GuidedArgs:
    """Of models that nobody loads."""
    names = {name for one in ensembles.values() for name in (one["base"], *one.get("helpers", ()))}
    return GuidedArgs.model_validate({"models": dict.fromkeys(names, "nowhere/none"), "ensembles": ensembles} | more)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app behind a port of this machine; its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def serving(args: GuidedArgs, answerers: Mapping[str, Tokenwise]) -> Iterator[str]:
    """The API with these ensembles, all in this process; its URL."""
    try:
        with listening(web(args, {name: Replica(one) for name, one in answerers.items()})) as url:
            yield url
    finally:
        for one in answerers.values():
            one.close()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)

"""From tokens to text as it comes: characters whose bytes are not all there, and text that may become a stop, wait."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 6
"""Tokens before the answer that decide how its first one is written."""


class Detokenizer:
    """The text of tokens as they come one by one, `before` being those that they follow."""

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self.decode, self.ids = decode, list(before[-CONTEXT:])
        self._first, self._told = 0, len(self.ids)

    def push(self, token: int) -> str:
        """What this token makes final."""
        self.ids.append(token)
        text, whole = self._text()
        if not text or whole.endswith(UNFINISHED):
            return ""
        self._first, self._told = self._told, len(self.ids)
        return text

    def flush(self) -> str:
        """What is left at the end: bytes that have become no character."""
        text, _ = self._text()
        self._told = len(self.ids)
        return text

    def _text(self) -> tuple[str, str]:
        whole = self.decode(self.ids[self._first :])
        return whole[len(self.decode(self.ids[self._first : self._told])) :], whole


class Stops:
    """Text up to the first of some strings, which may be spread over any pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.stopped = tuple(stops), "", False

    def push(self, text: str) -> str:
        """What is known to come before any stop."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.held, self.stopped = self.held[: min(places)], True
            return self.flush()
        keep = max((self._begun(stop) for stop in self.stops), default=0)
        told, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return told

    def flush(self) -> str:
        """What was held back, as no more comes."""
        told, self.held = self.held, ""
        return told

    def _begun(self, stop: str) -> int:
        """Characters at the end that a stop begins with."""
        most = min(len(stop) - 1, len(self.held))
        return next((n for n in range(most, 0, -1) if self.held.endswith(stop[:n])), 0)


class Tokens:
    """What a tokenizer's tokens are by themselves."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, tuple[bytes, str]] = {}

    def decode(self, ids: list[int]) -> str:
        """Several as text, those that only structure it left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def __getitem__(self, token: int) -> tuple[bytes, str]:
        """Its bytes, and them as text; where they are not whole characters as OpenAI writes them, bytes:\\xe2\\x80."""
        if token not in self._known:
            raw = self._bytes(token)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
            self._known[token] = raw, text
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if "ByteLevel" in self._decoders and all(char in self._alphabet for char in name):
            return bytes(self._alphabet[char] for char in name)
        if "ByteFallback" in self._decoders and len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        if "Metaspace" in self._decoders or "Replace" in self._decoders:
            return name.replace("▁", " ").encode()
        return name.encode() if token in self.tokenizer.all_special_ids else self.tokenizer.decode([token]).encode()

    @cached_property
    def _decoders(self) -> set[str]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.decoder is None:
            return set()
        state = json.loads(backend.decoder.__getstate__())
        return {state["type"]} | {step["type"] for step in state.get("decoders", ())}

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        """GPT-2's letters for bytes (Radford et al. 2019): printable ones are themselves, the others follow 255."""
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}

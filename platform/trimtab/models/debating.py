"""Debates held side by side in one decoder, and judges who read them.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trimtab.alignment import Sampling
from trimtab.data.rendering import prompt_tokens
from trimtab.errors import ModelError, StageError
from trimtab.lm import LM, row_seed
from trimtab.methods.debates._judging import Verdict, judge_messages
from trimtab.models.asked import Asked, Told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.methods.debates._base import Ask, Case, DebateProtocol, Message, Transcript
    from trimtab.methods.debates._wording import Wording
    from trimtab.models.decode import Decoder


class Tongue(Protocol):
    """Messages as a model reads them, and text out of what it draws."""

    def prompt(self, messages: list[Message]) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Chat:
    """A tokenizer's chat template; the messages' texts alone where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def prompt(self, messages: list[Message]) -> list[int]:
        if self.tokenizer.chat_template is None:
            return prompt_tokens(self.tokenizer, "\n".join(message["content"] for message in messages) + "\n")
        return prompt_tokens(self.tokenizer, messages)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@dataclass(frozen=True)
class Cost:
    """What a turn took: tokens of its prompt, tokens drawn, their log-prob, and whether the model ended it itself."""

    prompt_tokens: int
    tokens: int
    logprob: float
    ended: bool


@dataclass
class Held:
    """A debate under way, with the cost of every turn."""

    transcript: Transcript
    costs: list[Cost] = field(default_factory=list)
    asked: tuple[Ask, ...] = ()
    drawn: list[list[Told]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    @property
    def beat_is_over(self) -> bool:
        return all(told and told[-1].finish for told in self.drawn)


class Floor:
    """Where debates are held: every turn of all of them that can be said now is written at the same time."""

    def __init__(self, decoder: Decoder, tongue: Tongue) -> None:
        self.decoder, self.tongue = decoder, tongue

    def hold(self, protocol: DebateProtocol, begun: Sequence[Transcript], *, seed: int) -> list[Held]:
        """Every debate to its end; each turn has random numbers of its own, whatever is beside it.

        Raises ModelError where a prompt grows too long, StageError where a log-prob is not finite.
        """
        held = [Held(transcript) for transcript in begun]
        owner: dict[int, tuple[int, int]] = {}
        for i in range(len(held)):
            owner |= self._ask(protocol, held, i, seed)
        while self.decoder.busy:
            for told in self.decoder.step():
                i, place = owner[told.ticket]
                held[i].drawn[place].append(told)
                if told.finish and held[i].beat_is_over:
                    self._hear(protocol, held[i])
                    owner |= self._ask(protocol, held, i, seed)
        return held

    def forget(self) -> None:
        """Nothing that was read before counts for what comes: not even the rounding of sums hangs on it."""
        for slot in range(len(self.decoder.models[0].held)):
            self.decoder.models[0].rewind(slot, 0)

    def _ask(self, protocol: DebateProtocol, held: list[Held], i: int, seed: int) -> dict[int, tuple[int, int]]:
        """Tickets of the turns that debate i asks for."""
        one = held[i]
        one.asked = protocol.asks(one.transcript)
        one.prompts = [self.tongue.prompt(ask.messages) + self.tongue.encode(ask.start) for ask in one.asked]
        one.drawn = [[] for _ in one.asked]
        said, tickets = len(one.transcript.turns), {}
        for place, (ask, prompt) in enumerate(zip(one.asked, one.prompts, strict=True)):
            sampling = Sampling(temperature=protocol.temperature, max_new_tokens=ask.max_tokens)
            number = row_seed(seed, one.transcript.case.id, said + place)
            tickets[self.decoder.add(Asked((prompt,), sampling, number))] = (i, place)
        return tickets

    def _hear(self, protocol: DebateProtocol, one: Held) -> None:
        texts = []
        for ask, prompt, told in zip(one.asked, one.prompts, one.drawn, strict=True):
            if not all(math.isfinite(each.logprob) for each in told):
                raise StageError(f"case {one.transcript.case.id}: the model gives it log-probs that are not finite")
            ended = told[-1].finish == "stop"
            ids = [each.id for each in told]
            texts.append(ask.start + self.tongue.decode(ids[:-1] if ended else ids))
            one.costs.append(Cost(len(prompt), len(ids), math.fsum(each.logprob for each in told), ended))
        one.transcript = protocol.told(one.transcript, texts)


@dataclass(frozen=True)
class Brief:
    """What a judge is given: a case, and what was said of it."""

    case: Case
    said: str


class Judge:
    """A language model as judge: the probability of either label's first token, for both orders of the answers."""

    def __init__(self, lm: LM, tongue: Tongue, wording: Wording) -> None:
        self.lm, self.tongue, self.wording = lm, tongue, wording
        first, second = (tongue.encode(label)[0] for label in wording.judge_labels)
        if first == second:
            raise ModelError(f"judge_labels: {wording.judge_labels} begin with the same token; take other labels")
        self.labels = [first, second]

    def __call__(self, briefs: Sequence[Brief]) -> list[Verdict]:
        """A verdict a case. Raises StageError where a log-prob is not finite."""
        reply = self.tongue.encode(self.wording.judge_reply)
        contexts = [
            self.tongue.prompt(judge_messages(self.wording, brief.case, brief.said, swapped=swapped)) + reply
            for brief in briefs
            for swapped in (False, True)
        ]
        labels_B2 = self.lm.next_logprobs(contexts)[:, self.labels].float()
        if not labels_B2.isfinite().all():
            raise StageError("the judge gives labels log-probs that are not finite")
        first_B = labels_B2.softmax(-1)[:, 0].tolist()
        return [Verdict(given, swapped) for given, swapped in zip(first_B[::2], first_B[1::2], strict=True)]

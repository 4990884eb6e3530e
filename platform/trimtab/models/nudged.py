"""A base and its nudger as a language model: many answers side by side. Both are greedy, so no seed counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trimtab.alignment import Sampling
from trimtab.lm import Generated
from trimtab.methods.guides._nudging import End, Piece
from trimtab.methods.guides.nudging import Nudging
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.together import Together
from trimtab.models.writer import LocalWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NudgedLM:
    """Writes by nudging; base and nudger, each in a decoder of its own, share one tokenizer."""

    def __init__(self, guide: Nudging, decoders: Sequence[Decoder], tokenizer: PreTrainedTokenizerBase) -> None:
        self.guide, self.tokenizer = guide, tokenizer
        self.together = Together(decoders)

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt; its tokens are those that the base reads the text as, log-probs are the base's."""
        return self.together([partial(self._nudge, prompt, sampling.max_new_tokens) for prompt in prompts])

    def _nudge(self, prompt: list[int], most: int) -> Generated:
        writers = (
            LocalWriter(partial(self._ask, one), self.tokenizer, prompt, one.ends[0]) for one in self.together.decoders
        )
        said = list(self.guide(*writers, most=most))
        text = "".join(piece.text for piece in said if isinstance(piece, Piece))
        ended = any(isinstance(one, End) and one.reason == "nudging_model_stop" for one in said)
        base = self.together.decoders[0]
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + sorted(base.ends[0])[:ended]
        plain = Asked((prompt,), Sampling(max_new_tokens=1), 0, forced=tuple(ids), score_only=True)
        told = self._ask(base, plain) if ids else []
        return Generated(ids, [one.logprob for one in told], ended=ended)

    def _ask(self, decoder: Decoder, asked: Asked) -> list[Told]:
        return self.together.ask(decoder, [asked])[0]

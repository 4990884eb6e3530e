"""One model of an ensemble as the API sees it: how it reads prompts, and what its tokens are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trimtab.data.rendering import prompt_tokens, render
from trimtab.data.tables import Completion
from trimtab.errors import ModelError
from trimtab.serving.answer import Given, Prompt, Refused
from trimtab.serving.config import Member

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
LONGEST = 10**9
SPEAKERS = {"system": "", "user": "User: ", "assistant": "Assistant: ", "tool": "Tool: "}


@dataclass(frozen=True)
class Reader:
    """A model's name and its tokenizer; `plain`: it reads a chat as text, without a template."""

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    plain: bool = False

    @classmethod
    def of(cls, name: str, member: Member, folder: Path) -> "Reader":
        """Raises ModelError for a tokenizer that knows no end token."""
        from trimtab.models.network import load_tokenizer

        tokenizer = load_tokenizer(folder)
        if isinstance(member.template, Path):
            tokenizer.chat_template = member.template.expanduser().read_text()
        return cls(name, tokenizer, plain=member.template == "plain")

    def ids(self, prompt: Prompt) -> list[int]:
        """The prompt as this model reads it. Raises Refused for messages that its template does not take."""
        if is_ids(prompt):
            if (most := max(prompt)) >= len(self.tokenizer):
                raise Refused(400, f"prompt: no token {most}; there are {len(self.tokenizer)}", param="prompt")
            return list(prompt)
        return self._templated(lambda: prompt_tokens(self.tokenizer, self._shown(prompt)))

    def given(self, prompt: Prompt, given: Given) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of a completion behind it. Raises Refused for a completion without a token."""
        if is_ids(prompt) or is_ids(given.completion):
            ids = given.completion
            if isinstance(ids, str):
                ids = self.tokenizer(ids, add_special_tokens=False)["input_ids"]
            return self.ids(prompt), self.ids(ids) + [self.tokenizer.eos_token_id] * given.ended if ids else []
        answer = Completion(given.completion, given.ended)
        found = self._templated(lambda: render(self.tokenizer, self._shown(prompt), answer, max_length=LONGEST))
        return (found.prompt_ids, found.completion_ids) if found else ([], [])

    def _shown(self, prompt: Prompt) -> Prompt:
        """Without a template, the messages as text."""
        return plain_text(prompt) if self.plain else prompt

    def _templated(self, work: Callable[[], T]) -> T:
        from jinja2 import TemplateError

        try:
            return work()
        except (ModelError, TemplateError) as error:
            raise Refused(400, f"{self.name} cannot read this: {error}", param="messages") from error


def plain_text(prompt: str | list[dict[str, str]]) -> str:
    """A text, or the messages of a chat as one, without a template."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join([*(SPEAKERS[one["role"]] + one["content"] for one in prompt), SPEAKERS["assistant"].strip()])


def is_ids(prompt: Prompt) -> bool:
    """Token ids, not text or messages."""
    return isinstance(prompt, list) and isinstance(prompt[0], int)

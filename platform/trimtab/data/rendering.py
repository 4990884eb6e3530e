"""Prompts and completions as tokens; only those of the completion are trained on and scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trimtab.data.tables import Completion, Prompt
from trimtab.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS = ("rows", "truncated", "dropped_long_prompt", "dropped_empty", "merged_boundary", "supervised_tokens")


@dataclass(frozen=True)
class Rendered:
    """A prompt and a completion as token ids.

    truncated: tokens cut off the completion's end. merged: the prompt's last tokens look different with the completion
    behind them, and belong to the completion here.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    truncated: int = 0
    merged: bool = False

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    @property
    def mask(self) -> list[int]:
        """1 for a token that is trained on."""
        return [0] * len(self.prompt_ids) + [1] * len(self.completion_ids)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The prompt as a policy continues it. Raises ModelError for messages without a chat template."""
    ids = _encode(tokenizer, prompt)
    return _whole(tokenizer, ids, ended=False) if isinstance(prompt, str) else ids


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    completion: Completion | Mapping[str, Any],
    *,
    max_length: int,
) -> Rendered | None:
    """A completion behind its prompt; None where the prompt leaves no room in `max_length`, or no token is left.

    The completion begins after the tokens that the prompt has alone and with it, so what is a token of the completion
    hangs on nothing but the two. Raises ModelError for messages without a chat template, and for a whole answer without
    an end token to put there.
    """
    found = _rendered(tokenizer, prompt, completion, max_length)
    return None if isinstance(found, str) else found


def render_all(
    tokenizer: PreTrainedTokenizerBase, asked: Iterable[tuple[Prompt, str, bool]], *, max_length: int
) -> tuple[list[Rendered | None], dict[str, int]]:
    """Every (prompt, text, ended) as `render` gives it, and counts.

    rows: what could be rendered; truncated: of these, cut at the end; dropped_long_prompt and dropped_empty: what could
    not; merged_boundary: rows whose prompt ends in other tokens than alone; supervised_tokens: of all completions.
    """
    rendered, counts = [], dict.fromkeys(COUNTS, 0)
    for prompt, text, ended in asked:
        found = _rendered(tokenizer, prompt, Completion(text, ended), max_length)
        if isinstance(found, str):
            counts[found] += 1
            rendered.append(None)
            continue
        counts["rows"] += 1
        counts["truncated"] += found.truncated > 0
        counts["merged_boundary"] += found.merged
        counts["supervised_tokens"] += len(found.completion_ids)
        rendered.append(found)
    return rendered, counts


def _rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion | Mapping[str, Any], max_length: int
) -> Rendered | Literal["dropped_long_prompt", "dropped_empty"]:
    answer = completion if isinstance(completion, Completion) else Completion(**completion)
    alone = prompt_tokens(tokenizer, prompt)
    ids = _answered(tokenizer, prompt, alone, answer)
    start = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    if start >= max_length:
        return "dropped_long_prompt"
    if start == len(ids):
        return "dropped_empty"
    return Rendered(ids[:start], ids[start:max_length], max(0, len(ids) - max_length), start < len(alone))


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **how: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so it cannot read messages; "
            "use an instruction-tuned model, or data whose prompts and answers are texts"
        )
    how = how or {"add_generation_prompt": True}
    return list(tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=True, **how)["input_ids"])


def _answered(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, alone: list[int], completion: Completion
) -> list[int]:
    """Prompt and completion in one; what the template writes behind an answer stands only behind a whole one."""
    if isinstance(prompt, str):
        return _whole(tokenizer, _encode(tokenizer, prompt + completion.text), ended=completion.ended)
    if not completion.ended and not completion.text.strip():
        return alone
    messages = [*prompt, {"role": "assistant", "content": completion.text}]
    return _encode(tokenizer, messages, continue_final_message=not completion.ended)


def _whole(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, ended: bool) -> list[int]:
    """With one end token exactly if the text is whole, whatever the tokenizer itself puts there."""
    end = tokenizer.eos_token_id
    if ended and end is None:
        raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no eos_token to end an answer with; give it one")
    ids = ids[:-1] if ids and ids[-1] == end else ids
    return [*ids, end] if ended else ids


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of vocabulary, merges, special tokens and chat template; the padding, which no model sees, is left out."""
    return hashlib.sha256(json.dumps(_parts_of(tokenizer), sort_keys=True).encode()).hexdigest()[:16]


def _parts_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = json.loads(backend.to_str()) if backend is not None else {}
    model = steps.pop("model", {})
    for state in ("truncation", "padding", "added_tokens"):
        steps.pop(state, None)
    roles = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": model.get("merges"),
        "splitting": steps or type(tokenizer).__name__,
        "special tokens": roles,
        "chat template": tokenizer.chat_template,
    }

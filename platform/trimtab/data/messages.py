"""Prompts and answers out of raw values: texts, or lists of messages with a role and a content."""

from __future__ import annotations

import re
from typing import Any

from trimtab.data.formats import BadRow
from trimtab.data.tables import Message, Prompt

ROLES = ("system", "user", "assistant")
MIXED = "a text beside messages"


def plain(value: Any, name: str) -> Any:
    """A text that is not blank, or messages with nothing but role and content. Raises BadRow."""
    if value is None:
        raise BadRow(f"no {name}")
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"empty {name}")
        return value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BadRow(f"{name} is neither a text nor messages")
    if not value:
        raise BadRow(f"empty {name}")
    if any(message.get("role") not in ROLES for message in value):
        raise BadRow(f"unknown role; known: {', '.join(ROLES)}")
    if not all(isinstance(message.get("content"), str) for message in value):
        raise BadRow("message without a text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def prompt_of(value: Any) -> Prompt:
    """A prompt; messages end with the user's. Raises BadRow."""
    prompt = plain(value, "prompt")
    if isinstance(prompt, list):
        if prompt[-1]["role"] != "user":
            raise BadRow("last prompt message is not the user's")
        plain(prompt[-1]["content"], "prompt")
    return prompt


def answer_of(value: Any, name: str, prompt: Prompt) -> str:
    """The text of an answer to a prompt; one message of the assistant, or after the prompt's own. Raises BadRow."""
    answer = plain(value, name)
    if isinstance(answer, str) and isinstance(prompt, str):
        return answer
    if isinstance(answer, str) or isinstance(prompt, str):
        raise BadRow(MIXED)
    own = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    if len(own) != 1 or own[0]["role"] != "assistant":
        raise BadRow(f"{name} is not one message of the assistant")
    plain(own[0]["content"], name)
    return own[0]["content"]


def conversation(value: Any) -> tuple[list[Message], str]:
    """Messages as a prompt and the assistant's last answer. Raises BadRow."""
    messages = plain(value, "messages")
    if isinstance(messages, str):
        raise BadRow("messages is a text")
    if messages[-1]["role"] != "assistant":
        raise BadRow("messages end without an answer of the assistant")
    return messages[:-1], answer_of(messages[-1:], "answer", messages[:-1])


def question(value: Any) -> Prompt:
    """The prompt in messages, which may end with an answer. Raises BadRow."""
    messages = plain(value, "messages")
    answered = isinstance(messages, list) and messages[-1]["role"] == "assistant"
    return prompt_of(messages[:-1] if answered else messages)


def shared_beginning(chosen: Any, rejected: Any) -> Prompt:
    """The prompt that both begin with: equal messages, or equal text up to a word. Raises BadRow."""
    one, other = plain(chosen, "chosen"), plain(rejected, "rejected")
    if isinstance(one, str) != isinstance(other, str):
        raise BadRow(MIXED)
    if isinstance(one, str):
        return prompt_of(_shared_text(one, other))
    most = min(len(one), len(other)) - 1
    length = next((i for i in range(most) if one[i] != other[i]), most)
    return prompt_of(one[:length])


def _shared_text(one: str, other: str) -> str:
    """Equal words; a space before the first that differs belongs to the answers, as in tokens; a line break not."""
    most = min(len(one), len(other))
    length = next((i for i in range(most) if one[i] != other[i]), most)
    if length < most and one[length].isspace() and other[length].isspace():
        return one[:length]
    return re.sub(r"\S*\Z", "", one[:length]).removesuffix(" ")

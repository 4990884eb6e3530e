"""What is said to debaters and judges: the project's own words in prompts.toml, or a user's file in their place."""

from __future__ import annotations

import string
import tomllib
from functools import cache, cached_property
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from trimtab.spec import Spec

DEBATER = {"number", "own", "other", "words"}
FIELDS = {
    "case": {"question", "first", "second", "source", "transcript"},
    "source": {"source"},
    "turn": {"name", "text"},
    "debater": {"number", "answer"},
    "adviser": {"answer"},
    "critic": set(),
    "debate_start": {"own"},
    "consult_start": {"own"},
    "critique_start": set(),
    "debate_opening": DEBATER,
    "debate_reply": DEBATER,
    "consult_opening": DEBATER - {"number"},
    "consult_reply": DEBATER - {"number"},
    "critique_opening": {"words"},
    "critique_reply": {"words"},
    "plan": {"plan"},
    "quote": set(),
    "judge": {"question", "first", "second", "transcript"},
    "row": {"question", "transcript", "answer"},
}
"""What each text may name in braces; the others are taken as they stand."""


class Wording(Spec):
    """Every text of a debate. Braces name what is filled in; write a brace of the text twice."""

    case: str
    source: str
    turn: str
    debater: str
    adviser: str
    critic: str
    debate_start: str
    debate_opening: str
    debate_reply: str
    consult_start: str
    consult_opening: str
    consult_reply: str
    critique_start: str
    critique_opening: str
    critique_reply: str
    plan: str
    quote: str
    judge: str
    judge_reply: str
    judge_labels: tuple[str, str]
    row: str

    @model_validator(mode="after")
    def _fillable(self) -> Wording:
        for name, allowed in FIELDS.items():
            try:
                named = {field for _, field, _, _ in string.Formatter().parse(getattr(self, name)) if field is not None}
            except ValueError as error:
                raise ValueError(f"{name}: {error}; write a brace of the text twice: {{{{ or }}}}") from error
            if unknown := sorted(named - allowed):
                can = ", ".join(sorted(allowed)) or "nothing"
                raise ValueError(f"{name}: {{{unknown[0]}}} is not filled in there; what can be: {can}")
        return self


@cache
def shipped() -> Wording:
    """The project's texts."""
    return Wording(**tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8")))


def read_wording(path: str | None) -> Wording:
    """The project's texts, and those of a user's TOML file instead of them. Raises ValueError with what is wrong."""
    if path is None:
        return shipped()
    try:
        own = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        return Wording(**dict(shipped()) | own)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"prompts: {path} cannot be read: {error}") from error
    except ValidationError as error:
        said = "; ".join(".".join(map(str, e["loc"])) + " " * bool(e["loc"]) + e["msg"] for e in error.errors())
        raise ValueError(f"prompts: {path}: {said}") from error


class Worded(Spec):
    """What speaks to models in the words of a file. The words, not the file's name, are what a key is made of."""

    prompts: str | None = Field(None, description="a TOML file whose texts stand in for the project's of these names")

    @cached_property
    def wording(self) -> Wording:
        return read_wording(self.prompts)

    @model_validator(mode="after")
    def _readable(self) -> Worded:
        read_wording(self.prompts)
        return self

"""The parts of a debate experiment: debates, judges, what a classifier reads of them, panels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab.alignment import PromptColumns, PromptSpec
from trimtab.methods.debates._wording import Worded
from trimtab.methods.debates.sequential import Sequential
from trimtab.methods.panels.mean import Mean
from trimtab.parts import ModelSpec
from trimtab.spec import Spec, one_of

AnyDebate = one_of("trimtab.methods.debates")
AnyPanel = one_of("trimtab.methods.panels")


class CaseColumns(PromptColumns):
    """Further columns: of questions with choices, of answers judged one by one or compared, and of a text to quote."""

    question: str | None = None
    details: str | None = None
    choices: str | None = None
    answer: str | None = None
    first: str | None = None
    second: str | None = None
    label: str | None = None
    source: str | None = None


class CaseSpec(PromptSpec):
    """Questions with a right and a wrong answer, whatever form the file has them in."""

    format: Literal["auto", "pairs", "choices", "judged", "compared"] = "auto"
    columns: CaseColumns = CaseColumns()


class DebateSpec(Spec):
    """One debate of every case by copies of a model."""

    model: ModelSpec
    protocol: AnyDebate = Sequential()
    seed: int = 0


class JudgeSpec(Worded):
    """A language model that reads a case and what was said of it, and is asked which answer is right."""

    model: ModelSpec


class ContextSpec(Worded):
    """What a classifier reads of an answer: the question, what was said of it, the answer.

    shuffled: what was said of another case; masked: only how long each turn was; none: nothing.
    """

    how: Literal["none", "own", "shuffled", "masked"] = "own"
    seed: int = 0


class PanelSpec(Spec):
    """Several judges' labels into one."""

    panel: AnyPanel = Mean()


class Labeller(Spec):
    """Preferences by debate: copies of a model argue for either answer, language models judge."""

    kind: Literal["debate"] = "debate"
    debaters: ModelSpec
    protocol: AnyDebate = Sequential()
    judge: JudgeSpec
    members: int = Field(1, ge=1, description="debates of every pair, with seeds of their own, each judged")
    panel: AnyPanel = Mean()
    seed: int = 0

    @model_validator(mode="after")
    def _diverse(self) -> Labeller:
        if self.members > 1 and self.protocol.temperature == 0:
            raise ValueError("protocol.temperature is 0, so all members' debates would be alike: set it above 0")
        return self

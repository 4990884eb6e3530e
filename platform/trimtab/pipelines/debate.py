"""Debate helps weak-to-strong generalization (Lang, Huang & Li 2025; protocols after Khan et al. 2024)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab.debating import AnyDebate, AnyPanel, CaseSpec, JudgeSpec
from trimtab.methods.debates._base import TOKENS_A_WORD
from trimtab.methods.debates.consultancy import Consultancy
from trimtab.methods.debates.sequential import Sequential
from trimtab.methods.panels.mean import Mean
from trimtab.parts import ModelSpec
from trimtab.pipelines._base import Experiment, gathered
from trimtab.pipelines._debates import DebateBench, Room, Rooms
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.cases import cases
from trimtab.stages.debate_report import debate_report

NAME = 24
"""Tokens of a speaker's name, and of the words that a turn is given to begin with."""


class Debate(Experiment):
    """Copies of the strong model argue for opposite answers; weak judges, trained on truth with the transcripts as
    context, label what the strong student learns from, who sees the question only.

    Beside it, with labels made the same way: `rivals` (other protocols), the weak model debating itself, transcripts of
    other cases, masked transcripts of the same lengths, as many weak models without debate, and one.
    """

    kind: Literal["debate"] = "debate"
    task: CaseSpec
    debaters: ModelSpec
    protocol: AnyDebate = Sequential()
    members: int = Field(4, ge=1, description="weak judges of a panel, each with a debate of every case of its own")
    panel: AnyPanel = Mean()
    rivals: dict[str, AnyDebate] = Field({"consultancy": Consultancy()}, description="protocols to compare with")
    weak_debaters: ModelSpec | None = Field(None, description="the weak model as debater; default: the supervisor's")
    zero_shot: JudgeSpec | None = Field(None, description="a judge that is asked and not trained")

    def __call__(self, run: Runner) -> Artifact:
        rooms = Rooms(self, run, run(cases, self.task, label="cases"))
        debates = rooms.debated("debate", self.debaters, self.protocol)
        heard = {"debate": rooms.heard("debate", "own", debates)} | rooms.controls(debates)
        asked = rooms.zero_shot(debates)
        benches = [self.once(DebateBench(self, run, rooms.quiet(), seed), heard, asked) for seed in self.seeds]
        return run(debate_report, self, label="report", parts=gathered(benches))

    def once(self, bench: DebateBench, heard: dict[str, list[Room]], asked: dict[str, Artifact]) -> DebateBench:
        data = bench.data
        supervisor = bench.train("supervisor", self.supervisor, data=data / "supervise")
        single = bench.label("single", self.supervisor, model=supervisor, data=data / "transfer")
        labels = {name: bench.judged(name, rooms) for name, rooms in heard.items()} | {"single": single}
        for name, verdicts in asked.items():
            bench.asked(name, verdicts)
        for name, spec in self.students.items():
            for by, weak_labels in labels.items():
                bench.train(self.student(name, by), spec, data=weak_labels)
        bench.train("ceiling", self.ceiling, data=data / "transfer", truth=data / "truth")
        return bench

    def student(self, name: str, by: str) -> str:
        """A student by whom its labels are, and by its own name where there are several."""
        return f"student.{by}" + (f" {name}" if len(self.students) > 1 else "")

    @model_validator(mode="after")
    def _possible(self) -> Debate:
        if self.members > 1 and self.protocol.temperature == 0:
            raise ValueError("protocol.temperature is 0, so all members' debates would be alike: set it above 0")
        if taken := {"debate", "weak_debaters", "shuffled", "masked", "ensemble", "single"} & set(self.rivals):
            raise ValueError(f"rivals: {min(taken)!r} is the name of a part of every debate experiment; take another")
        for name, protocol in {"protocol": self.protocol, **self.rivals}.items():
            longest = protocol.utterances * (TOKENS_A_WORD * protocol.words + NAME)
            if self.supervisor.max_length < longest:
                raise ValueError(
                    f"supervisor.max_length is {self.supervisor.max_length}, but transcripts of {name} take up to "
                    f"{longest:g} tokens and the answer stands behind them: raise it, or lower turns or words"
                )
        return self

"""What a debate experiment hears, and one seed of it: panels of weak judges that label for the strong student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.debating import ContextSpec, DebateSpec, Labeller, PanelSpec
from trimtab.pipelines._base import Bench, seeded
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.context import context
from trimtab.stages.debate import debate
from trimtab.stages.evaluate import audit
from trimtab.stages.judge import judge, verdicts
from trimtab.stages.label import label
from trimtab.stages.panel import grade, jury, panel
from trimtab.stages.train import train

if TYPE_CHECKING:
    from trimtab.methods.debates._base import DebateProtocol
    from trimtab.parts import ModelSpec
    from trimtab.pipelines.debate import Debate

FAR = 1000
"""Members' seeds are this far apart, so that no member's is a seed of the experiment."""


def debated(run: Runner, spec: Labeller, rows: Artifact) -> Artifact:
    """Scores of two completions a prompt: log p of either, as judges of debates over them see it."""
    scores = {}
    for i in range(spec.members):
        wanted = DebateSpec(model=spec.debaters, protocol=spec.protocol, seed=spec.seed + i)
        held = run(debate, wanted, label=f"debate over completions {i}", rows=rows)
        scores[str(i)] = run(judge, spec.judge, label=f"judge of completions {i}", rows=rows, transcripts=held)
    if spec.members == 1:
        return scores["0"]
    return run(jury, PanelSpec(panel=spec.panel), label="jury over completions", members=scores)


@dataclass(frozen=True)
class Room:
    """Where one judge of a panel sits: the debate that it hears, if any, and the rows made of it."""

    rows: Artifact
    heard: Artifact | None = None


@dataclass
class Rooms:
    """Debates of all cases, each held once for all seeds, and what they make of the rows."""

    job: Debate
    run: Runner
    cases: Artifact

    def debated(self, name: str, model: ModelSpec, protocol: DebateProtocol) -> list[Artifact]:
        """A debate of every case for each member, drawn independently."""
        specs = [DebateSpec(model=model, protocol=protocol, seed=i) for i in range(self.job.members)]
        return [self.run(debate, spec, label=f"{name} {i}", rows=self.cases) for i, spec in enumerate(specs)]

    def heard(self, name: str, how: str, debates: list[Artifact]) -> list[Room]:
        found = []
        for i, one in enumerate(debates):
            spec = ContextSpec(how=how, prompts=self.job.protocol.prompts, seed=i)
            rows = self.run(context, spec, label=f"rows of {name}", rows=self.cases, transcripts=one)
            found.append(Room(rows, one))
        return found

    def quiet(self) -> Artifact:
        """The rows without a word said of them."""
        spec = ContextSpec(how="none", prompts=self.job.protocol.prompts)
        return self.run(context, spec, label="rows", rows=self.cases)

    def controls(self, debates: list[Artifact]) -> dict[str, list[Room]]:
        """Everything that a gain by debate has to be compared with."""
        job, alone = self.job, self.quiet()
        rivals = {name: (job.debaters, protocol) for name, protocol in job.rivals.items()}
        rivals["weak_debaters"] = (job.weak_debaters or job.supervisor.model, job.protocol)
        held = {name: self.debated(name, model, protocol) for name, (model, protocol) in rivals.items()}
        return (
            {name: self.heard(name, "own", one) for name, one in held.items()}
            | {how: self.heard(how, how, debates) for how in ("shuffled", "masked")}
            | {"ensemble": [Room(alone)] * job.members}
        )

    def zero_shot(self, debates: list[Artifact]) -> dict[str, Artifact]:
        """An untrained judge's verdicts, with the first member's debate and without."""
        spec = self.job.zero_shot
        if spec is None:
            return {}
        heard = self.run(judge, spec, label="zero-shot judge", rows=self.cases, transcripts=debates[0])
        alone = self.run(judge, spec, label="zero-shot judge, no debate", rows=self.cases)
        return {"zero_shot": heard, "zero_shot_alone": alone}


@dataclass
class DebateBench(Bench):
    """`rows` are those without debate, which the student sees."""

    job: Debate

    def judged(self, name: str, rooms: list[Room]) -> Artifact:
        """Labels of the transfer rows by a panel of weak judges, trained on truth with what they heard as context."""
        given = {str(i): self._labelled(name, i, room) for i, room in enumerate(rooms)}
        labels = self._together(given, self.data / "transfer", name)
        tested = self._together(given, self.data / "test", name)
        self.found |= {f"panel/{name}, transfer": labels, f"panel/{name}, test": tested}
        if self.held:
            self._validated(name, labels, self._together(given, self.held / "validation", name))
        truth = self.data / "truth"
        self.found[f"audit/{name}"] = self.run(
            audit, self.job.eval, label=f"audit of {name}'s labels", labels=labels, truth=truth
        )
        heard = {"transcripts": rooms[0].heard} if rooms[0].heard else {}
        self._graded(name, tested, **heard)
        return labels

    def _validated(self, name: str, labels: Artifact, said: Artifact) -> None:
        """What who learns from these labels is compared with; how right the judges are where truth may be used."""
        self.said[labels] = said
        if self.job.validation.truth:
            inputs = {"labels": said, "truth": self.held / "truth"}
            graded = self.run(grade, self.job.eval, label=f"validate judge, {name}", **inputs)
            self.run.outcome("validation", f"judge.{name}", graded)

    def _labelled(self, name: str, member: int, room: Room) -> Artifact:
        """One judge's labels of all rows."""
        data = self.drawn(room.rows)
        spec = seeded(self.job.supervisor, self.seed + FAR * member)
        states = self.states(spec, room.rows)
        model = self.run(train, spec, label=f"train judge, {name} {member}", data=data / "supervise", **states)
        self.found.setdefault(f"model/judge.{name}", model)
        inputs = {"model": model, "data": room.rows} | states
        return self.run(label, self.job.labels, label=f"labels by judge, {name} {member}", **inputs)

    def asked(self, name: str, judged: Artifact) -> None:
        """How right the verdicts of an untrained judge are on the test rows."""
        inputs = {"judged": judged, "data": self.data / "test"}
        given = self.run(verdicts, self.job.labels, label=f"verdicts of {name}", **inputs)
        self.found[f"judged/{name}"] = judged
        self._graded(name, given)

    def _together(self, members: dict[str, Artifact], data: Artifact, name: str) -> Artifact:
        spec = PanelSpec(panel=self.job.panel)
        return self.run(panel, spec, label=f"panel of {name}, {data.part}", members=members, data=data)

    def _graded(self, name: str, labels: Artifact, **heard: Artifact) -> None:
        inputs = {"labels": labels, "truth": self.data / "test"} | heard
        graded = self.run(grade, self.job.eval, label=f"grade of judge, {name}", **inputs)
        self.found[f"score/judge.{name}"] = graded
        self.run.outcome("test", f"judge.{name}", graded)

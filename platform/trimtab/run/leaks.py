"""What a choice may not hang on: nothing that a validation outcome is made of may read truth of transfer or test.

Truth that may be read is the supervisor's (split supervise) and that of the rows set aside for it (reserve's truth).
A stage that is not known to leave truth alone counts as reading what it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from trimtab.run.artifact import Artifact, Node, PlanRunner

APART = frozenset({"split", "divide", "reserve", "reserve_prompts"})
"""Stages that are given all rows to keep truth apart."""
READERS = frozenset(
    {"features", "label", "generate", "logprobs", "score", "vader", "context", "debate", "judge", "reweigh"}
)
"""Stages that read texts only, whatever stands beside them."""
WHOLE = frozenset({"prepare", "prompts", "cases", "context"})
"""Stages whose rows come with their truth."""
DRAWN = {
    "split": {"test": "the test split", "truth": "the truth of transfer", "": "every split with its truth"},
    "divide": {"test": "the test split", "truth": "the truth of all splits", "": "every split with its truth"},
    "reserve": {"rest": "all rows that are not set aside, with their truth", "": "all rows with their truth"},
    "reserve_prompts": {"": "all prompts"},
}
SUPERVISE = "truth/supervise"


def leaks(run: PlanRunner, names: Collection[str] | None = None) -> list[str]:
    """What the validation outcomes of these names (of all, by default) read that they may not, one line each."""
    ends = [
        a
        for (split, name), found in run.outcomes.items()
        if split == "validation"
        for a in found
        if names is None or name in names
    ]
    found = (f"{node.label}: {why}" for node in run.behind(ends) for why in _read(run, node))
    return list(dict.fromkeys(found))


def _read(run: PlanRunner, node: Node) -> Iterator[str]:
    if node.artifact.stage == "explore" and "reward" not in node.needs:
        yield "it learns from the gold reward of transfer prompts"
    for name, artifact in node.needs.items():
        if what := _truth_in(run, artifact, node):
            yield f"its input {name} is {what}"


def _truth_in(run: PlanRunner, artifact: Artifact, reader: Node) -> str | None:
    """The truth that an input holds and this stage may not read."""
    by, maker = reader.artifact.stage, run.nodes[artifact.id]
    if artifact.stage in WHOLE:
        return None if by in APART | READERS else "all rows with their truth"
    if _is_gold(maker) and maker.needs["rows"].stage != "allowed":
        return None if by in APART else "a gold reward of more than the rows set aside"
    if artifact.part.startswith("truth/"):
        return None if artifact.part == SUPERVISE else f"the truth of {artifact.part.removeprefix('truth/')}"
    return None if by in APART else DRAWN.get(artifact.stage, {}).get(artifact.part)


def _is_gold(maker: Node) -> bool:
    """Whether a node's scores are a gold reward: no stage of the job trained who gives them."""
    return maker.artifact.stage == "vader" or (maker.artifact.stage == "score" and "model" not in maker.needs)

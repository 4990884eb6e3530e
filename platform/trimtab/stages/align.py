"""Stages that train on pairs of completions: policies and reward models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.alignment import PolicySpec, RewardSpec
from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.parts import Probe
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS
from trimtab.stages.train import TRAINED_ON, hold_out

if TYPE_CHECKING:
    from trimtab.training.completions import Shown

Table = list[dict[str, Any]]


@stage(version=2, on="workers", resumes=True)
def align(
    spec: PolicySpec,
    out: Path,
    *,
    compute: Compute,
    data: Path,
    model: Path | None = None,
    reference: Path | None = None,
    weak: Path | None = None,
    weak_reference: Path | None = None,
    partial: Path | None = None,
) -> Metrics:
    """A policy trained on pairs (or single completions), from `model` where an earlier stage made it.

    `reference`, `weak` and `weak_reference` are outputs of stage logprobs for the same completions.
    Raises DataError for rows of the wrong kind or without log-probs, ModelError where the frozen models' tokenizer is
    another.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.models.language import made_by

    frozen = {"reference": reference, "weak": weak, "weak_reference": weak_reference}
    needed = {name: frozen[name] for name in spec.objective.needs}
    if missing := [name for name, folder in needed.items() if folder is None]:
        raise DataError(
            f"{spec.objective.kind} needs the log-probs of {', '.join(missing)}: give the output of logprobs"
        )
    spec = spec.model_copy(update={"model": made_by(model, spec.model)})
    table = read_jsonl(data / ROWS)
    _check_kind(table, spec, data)
    return _trained(table, spec, out, compute=compute, frozen=needed, partial=partial)


@stage(version=2, on="workers", resumes=True)
def train_reward(
    spec: RewardSpec,
    out: Path,
    *,
    compute: Compute,
    data: Path,
    features: Path | None = None,
    partial: Path | None = None,
) -> Metrics:
    """A reward model trained on pairs; `features` are the states of the trunk that a probe leaves frozen."""
    from trimtab.data.tables import read_jsonl
    from trimtab.training.world import world

    table = read_jsonl(data / ROWS)
    if not isinstance(spec.tune, Probe):
        return _trained(table, spec, out, compute=compute, frozen={}, partial=partial)
    if features is None:
        raise DataError("a probe is trained on the states of its trunk: give the output of stage features")
    from trimtab.training.reward_probe import train_reward_probe

    kept, _ = hold_out(table, spec)
    return train_reward_probe(spec, out, pairs=kept, features=features) if world().first else {}


def _check_kind(table: Table, spec: PolicySpec, data: Path) -> None:
    single = "candidates" in table[0]
    if single != spec.objective.unpaired:
        wants, has = ("single completions", "pairs") if spec.objective.unpaired else ("pairs", "single completions")
        raise DataError(f"{data / ROWS}: {spec.objective.kind} is trained on {wants}, these rows are {has}")


def _trained(
    table: Table, spec: Any, out: Path, *, compute: Compute, frozen: dict[str, Path], partial: Path | None
) -> Metrics:
    import json

    from trimtab.training.policies import train_on_pairs
    from trimtab.training.world import world

    kept, held = hold_out(table, spec)
    data, counts = _shown(kept, spec, compute=compute, frozen=frozen)
    watched, _ = _shown(held, spec, compute=compute, frozen=frozen) if held else (None, {})
    if world().first:
        (out / TRAINED_ON).write_text("\n".join(data.ids))
        (out / "rendering.json").write_text(json.dumps(counts))
    metrics = train_on_pairs(spec, out, compute=compute, data=data, held=watched or None, partial=partial)
    return metrics | {f"rows_{name}": value for name, value in counts.items()}


def _shown(table: Table, spec: Any, *, compute: Compute, frozen: dict[str, Path]) -> tuple[Shown, dict[str, int]]:
    """Rows as the model sees them, and how many were cut, dropped or merged."""
    import torch

    from trimtab.data.rendering import render_all, tokenizer_identity
    from trimtab.errors import ModelError
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.stages.logprobs import Logprobs
    from trimtab.training.completions import Shown

    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    stored = {name: Logprobs(folder) for name, folder in frozen.items()}
    own = tokenizer_identity(tokenizer)
    for name, logprobs in stored.items():
        if logprobs.tokenizer != own:
            raise ModelError(
                f"the {name} model's tokenizer is not the policy's ({logprobs.tokenizer} and {own}): "
                f"{spec.objective.kind} compares them token by token, so use models with one vocabulary"
            )
    alone = getattr(spec.objective, "chosen_only", False)
    places = [_places(row, alone=alone) for row in table]
    rendered, counts = render_all(
        tokenizer,
        [
            (row["prompt"], text["text"], text["ended"])
            for row, own in zip(table, places, strict=True)
            for text in own[2]
        ],
        max_length=spec.max_length,
    )
    width = len(places[0][2])
    grouped = [tuple(rendered[i : i + width]) for i in range(0, len(rendered), width)]
    whole = [i for i, row in enumerate(grouped) if all(row)]
    counts["completions"], counts["dropped"] = counts.pop("rows"), len(table) - len(whole)
    found = {name: [tuple(_logps(logprobs, places[i], grouped[i])) for i in whole] for name, logprobs in stored.items()}
    p_N = torch.tensor([table[i]["p"] for i in whole])
    margin_N = torch.tensor([table[i].get("margin", 0.0) for i in whole])
    return Shown([table[i]["id"] for i in whole], [grouped[i] for i in whole], p_N, margin_N, found), counts


def _places(row: dict[str, Any], *, alone: bool) -> tuple[str, tuple[int, ...], list[dict[str, Any]]]:
    """Under which id and places a row's completions have their log-probs, and the completions."""
    if "candidates" in row:
        return row["id"], tuple(range(len(row["candidates"]))), row["candidates"]
    if alone:
        return row["prompt_id"], (row["chosen_index"],), [row["chosen"]]
    return row["prompt_id"], (row["chosen_index"], row["rejected_index"]), [row["chosen"], row["rejected"]]


def _logps(logprobs: Any, place: tuple[str, tuple[int, ...], Any], shown: tuple[Any, ...]) -> list[Any]:
    row_id, indices, _ = place
    found = []
    for index, completion in zip(indices, shown, strict=True):
        ids, logps_T = logprobs.of(row_id, index)
        if ids.tolist() != completion.completion_ids:
            raise DataError(
                f"row {row_id}, completion {index}: its stored log-probs are of other tokens; "
                "use one max_length for all"
            )
        found.append(logps_T)
    return found

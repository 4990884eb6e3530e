"""Stage train: a model from labelled rows, on however many ranks call it together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.parts import Probe, Top, TrainSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.training.rows import Labelled

TRAINED_ON = "trained_on.txt"
Table = list[dict[str, Any]]


@stage(version=1, on="workers", resumes=True)
def train(
    spec: TrainSpec,
    out: Path,
    *,
    compute: Compute,
    data: Path,
    truth: Path | None = None,
    features: Path | None = None,
    oracle: Path | None = None,
    partial: Path | None = None,
) -> Metrics:
    """Train on the labels in `data` (soft or hard), or on `truth` for the same rows where it is given.

    `features` are the states of the trunk that the spec leaves frozen. `oracle` rows carry truth: their accuracy
    is logged as oracle/accuracy and steers nothing. Rows of `eval_fraction` are held out: how well the model agrees
    with their labels is logged as eval_agreement and eval_loss. Checkpoints lie in `partial`.
    Raises DataError when `truth` lacks a row or too few rows are left.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.training.world import world

    first = world().first
    table = read_jsonl(data / ROWS)
    if truth:
        table = _with_truth(table, truth)
    kept, held = hold_out(table, spec)
    if first:
        (out / TRAINED_ON).write_text("\n".join(row["id"] for row in kept))
    tables = {"train": kept, "weak": held, "oracle": read_jsonl(oracle / ROWS) if oracle else []}
    classes = max(len(row["soft_label"]) if "soft_label" in row else row["label"] + 1 for row in table)
    sets = {
        name: _labelled(rows, spec, compute=compute, features=features, classes=max(2, classes))
        for name, rows in tables.items()
        if rows
    }
    found = {"data": sets.pop("train"), "held": sets}
    if isinstance(spec.tune, Probe):
        from trimtab.training.probe import train_probe

        return train_probe(spec, out, **found) if first else {}
    from trimtab.training.loop import train_network

    return train_network(spec, out, compute=compute, partial=partial, **found)


def _with_truth(table: Table, truth: Path) -> Table:
    from trimtab.data.tables import read_jsonl

    right = {row["id"]: row["label"] for row in read_jsonl(truth / ROWS)}
    if missing := [row["id"] for row in table if row["id"] not in right]:
        raise DataError(f"{truth / ROWS} has no label for {len(missing)} rows, {missing[0]} the first")
    return [{"id": row["id"], "text": row["text"], "label": right[row["id"]]} for row in table]


def hold_out(table: Table, spec: TrainSpec) -> tuple[Table, Table]:
    """Rows kept and rows held out, by a stable hash of seed and prompt (or id). Raises DataError when none is kept."""
    import hashlib

    def owner(row: dict[str, Any]) -> bytes:
        return hashlib.blake2b(f"{spec.seed}:{row.get('prompt_id', row['id'])}".encode()).digest()

    owners = sorted(set(map(owner, table)))
    held = set(owners[: round(len(owners) * spec.eval_fraction)])
    if len(held) == len(owners):
        raise DataError(f"{len(table)} rows to train on, of which eval_fraction {spec.eval_fraction} leaves none")
    order = sorted(table, key=lambda row: (owner(row), row["id"]))
    return [row for row in order if owner(row) not in held], [row for row in order if owner(row) in held]


def _probabilities(table: Table, classes: int) -> Tensor:
    """probabilities_NC: the soft labels, or the truth as one-hot rows. Raises DataError for a class out of range."""
    import torch

    if unknown := [row["id"] for row in table if row.get("label", 0) >= classes]:
        raise DataError(f"row {unknown[0]}: its label is none of the {classes} classes that there are to train on")
    hot = torch.eye(classes).tolist()
    return torch.tensor([row["soft_label"] if "soft_label" in row else hot[row["label"]] for row in table])


def _labelled(table: Table, spec: TrainSpec, *, compute: Compute, features: Path | None, classes: int) -> Labelled:
    from trimtab.models.features import States, encode
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.training.rows import Labelled

    ids, weak_NC = [row["id"] for row in table], _probabilities(table, classes)
    if isinstance(spec.tune, Probe):
        if features is None:
            raise DataError("a probe is trained on the states of its trunk: give the output of stage features")
        return Labelled(ids, States(features).matrix(ids), weak_NC)
    if features and isinstance(spec.tune, Top):
        return Labelled(ids, States(features).rows(ids), weak_NC)
    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    return Labelled(ids, encode(tokenizer, [row["text"] for row in table], spec.max_length), weak_NC)

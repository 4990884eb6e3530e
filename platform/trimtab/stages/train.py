"""Stage train: a model from labelled rows, on however many ranks call it together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.parts import Probe, Top, TrainSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_ON = "trained_on.txt"


@stage(version=1, on="workers")
def train(
    spec: TrainSpec,
    out: Path,
    *,
    compute: Compute,
    data: Path,
    truth: Path | None = None,
    features: Path | None = None,
    oracle: Path | None = None,
) -> Metrics:
    """Train on the labels in `data` (soft or hard), or on `truth` for the same rows where it is given.

    `features` are the states of the trunk that the spec leaves frozen. `oracle` rows carry truth: their accuracy
    is logged as oracle/accuracy and steers nothing.
    """
    import torch

    from trimtab.data.tables import read_jsonl

    torch.manual_seed(spec.seed)
    table = read_jsonl(data / ROWS)
    if truth:
        right = {row["id"]: row["label"] for row in read_jsonl(truth / ROWS)}
        table = [row | {"label": right[row["id"]]} for row in table]
    (out / TRAINED_ON).write_text("\n".join(row["id"] for row in table))
    if isinstance(spec.tune, Probe):
        return _probe(spec, out, table=table, features=features)
    from trimtab.training.loop import train_network

    kept, held = _hold_out(table, spec)
    watched = {"weak": held, "oracle": read_jsonl(oracle / ROWS) if oracle else []}
    sets = {name: _encoded(rows, spec, compute=compute, features=features) for name, rows in watched.items() if rows}
    data_set = _encoded(kept, spec, compute=compute, features=features)
    return train_network(spec, out, compute=compute, data=data_set, held=sets)


def _probe(spec: TrainSpec, out: Path, *, table: list[dict[str, Any]], features: Path | None) -> Metrics:
    from trimtab.models.features import States
    from trimtab.models.network import write_card
    from trimtab.training.probe import train_probe
    from trimtab.training.world import world

    weak_NC = _probabilities(table)
    if not world().first:
        return {}
    states_ND = States(features).matrix([row["id"] for row in table])
    metrics = train_probe(spec, out, states_ND=states_ND, weak_NC=weak_NC)
    write_card(out / "model", {"n_classes": weak_NC.shape[1], "spec": spec.model_dump(mode="json")})
    return metrics


def _hold_out(table: list[dict[str, Any]], spec: TrainSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows kept and rows held out, by a stable hash of id and seed."""
    import hashlib

    order = sorted(table, key=lambda row: hashlib.blake2b(f"{spec.seed}:{row['id']}".encode()).digest())
    held = round(len(table) * spec.eval_fraction)
    return order[held:], order[:held]


def _probabilities(table: list[dict[str, Any]]) -> Tensor:
    """probabilities_NC: the soft labels, or the truth as one-hot rows."""
    import torch

    if "soft_label" in table[0]:
        return torch.tensor([row["soft_label"] for row in table])
    labels = torch.tensor([row["label"] for row in table])
    return torch.nn.functional.one_hot(labels, max(2, int(labels.max()) + 1)).float()


def _encoded(table: list[dict[str, Any]], spec: TrainSpec, *, compute: Compute, features: Path | None) -> Any:
    from trimtab.models.features import States, encode
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.training.loop import Labelled

    if features and isinstance(spec.tune, Top):
        return Labelled(States(features).rows([row["id"] for row in table]), _probabilities(table))
    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    return Labelled(encode(tokenizer, [row["text"] for row in table], spec.max_length), _probabilities(table))

"""Stage report: what an experiment found, as metrics, one HTML page and one picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.evaluate import PREDICTIONS
from trimtab.stages.reserve import set_aside

if TYPE_CHECKING:
    from trimtab.metrics import Bootstrap
    from trimtab.stages._report_page import LabelQuality, ModelResult, ReportData, SplitSummary, StageTime

PAGE, PICTURE, TABLE = "report.html", "report.png", "table.json"


@stage(version=1, on="driver")
def report(spec: Spec, out: Path, *, compute: Compute, parts: Mapping[str, Path]) -> Metrics:
    """Averages over seeds before PGR, paired bootstrap intervals over test rows and seeds; parts are seed/what/name."""
    data = collected(spec, Parts(parts))
    write_report(data, out)
    return metrics_of(data)


def predicted(found: Parts) -> dict[str, list[dict[str, Any]]]:
    """Every scored model's predictions, a seed after the other."""
    return {name: [predictions_of(path) for path in paths] for name, paths in found.of("score").items()}


def collected(spec: Spec, found: Parts) -> ReportData:
    """What the report shows."""
    from trimtab.metrics import paired_bootstrap

    predictions = predicted(found)
    correct = {name: [seed["correct"] for seed in seeds] for name, seeds in predictions.items()}
    options = spec.report
    same_rows = len({tuple(seed["ids"]) for seed in predictions["supervisor"]}) == 1
    boot = paired_bootstrap(correct, options.level, resamples=options.bootstrap, same_rows=same_rows)
    return _collect(spec, found, predictions, boot)


def write_report(data: ReportData, out: Path) -> None:
    """The page, the picture and the table."""
    from trimtab.stages._report_page import render_page, summary_table
    from trimtab.stages._report_plots import headline_plot

    (out / PAGE).write_text(render_page(data), encoding="utf-8")
    headline_plot(data, out / PICTURE)
    (out / TABLE).write_text(json.dumps(summary_table(data)))


class Parts:
    """The input folders by seed, what they are, and the model's name."""

    def __init__(self, parts: Mapping[str, Path]) -> None:
        self.paths = {tuple(key.split("/", 2)): path for key, path in parts.items()}
        self.seeds = sorted({int(key[0]) for key in self.paths})

    def of(self, what: str) -> dict[str, list[Path]]:
        """name -> one folder a seed."""
        found: dict[str, list[Path]] = {}
        for key in sorted(self.paths, key=lambda key: int(key[0])):
            if key[1] == what:
                found.setdefault(key[2] if len(key) > 2 else "", []).append(self.paths[key])
        return found

    def results(self) -> list[tuple[dict[str, Any], Metrics]]:
        """Record and metrics of every stage that the inputs come from, themselves included, each once."""
        seen: dict[str, tuple[dict[str, Any], Metrics]] = {}
        todo = [_whole(folder) for folder in self.paths.values()]
        while todo:
            folder = todo.pop()
            if folder.name in seen:
                continue
            record, metrics = (json.loads((folder / name).read_text()) for name in ("stage.json", "metrics.json"))
            seen[folder.name] = record, metrics
            todo += [folder.parent / ref.split("/")[0] for ref in record["inputs"].values()]
        return sorted(seen.values(), key=lambda one: one[0]["started"])

    def befell(self) -> list[str]:
        """What stages went on in spite of: memory that ran out, workers that died, checkpoints that cannot be used."""
        return [f"{record['label']}: {text}" for record, _ in self.results() for text in record.get("befell", ())]


def _whole(folder: Path) -> Path:
    """The artifact of which a folder is a part."""
    return folder if (folder / "stage.json").exists() else _whole(folder.parent)


def predictions_of(folder: Path) -> dict[str, Any]:
    import numpy as np

    from trimtab.data.tables import read_jsonl

    rows = sorted(read_jsonl(folder / PREDICTIONS), key=lambda row: row["id"])
    probs_NC, labels_N = np.array([row["probs"] for row in rows]), np.array([row["label"] for row in rows])
    correct_N = (probs_NC.argmax(1) == labels_N).astype(float)
    return {"ids": [row["id"] for row in rows], "probs": probs_NC, "labels": labels_N, "correct": correct_N}


def role_of(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _collect(spec: Spec, found: Parts, predictions: dict[str, Any], boot: Bootstrap) -> ReportData:
    import yaml

    from trimtab.stages._report_page import ReportData
    from trimtab.versions import commit, versions

    return ReportData(
        title=f"{spec.kind}: {spec.task.source}",
        job_file=yaml.safe_dump(as_written(spec), sort_keys=False),
        versions=versions(),
        commit=commit(),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        models=[_model(name, found, predictions, boot) for name in predictions],
        stages=times(found),
        notes=["oracle/ curves are measured on truth during training; nothing is chosen by them."] * spec.oracle
        + set_aside(spec)
        + found.befell(),
        data=_splits(found),
        label_quality=label_quality(found),
        level=spec.report.level,
    )


def as_written(value: Any) -> Any:
    """A spec as a job file would say it: what differs from the defaults, and every kind."""
    if isinstance(value, Spec):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        defaults = {name: field.get_default() for name, field in type(value).model_fields.items()}
        return {name: as_written(v) for name, v in fields.items() if name == "kind" or v != defaults[name]}
    if isinstance(value, dict):
        return {key: as_written(item) for key, item in value.items()}
    return [as_written(item) for item in value] if isinstance(value, tuple) else value


def _model(name: str, found: Parts, predictions: dict[str, Any], boot: Bootstrap) -> ModelResult:
    import numpy as np

    from trimtab.metrics import agreement, calibration_bins
    from trimtab.stages._report_page import ModelResult
    from trimtab.training.curves import read_curves

    mine, weak = predictions[name], predictions["supervisor"]
    pooled = {key: np.concatenate([seed[key] for seed in mine]) for key in ("probs", "labels")}
    weak_probs = np.concatenate([seed["probs"] for seed in weak])
    scored = [json.loads((path / "metrics.json").read_text()) for path in found.of("score")[name]]
    trained = found.of("model")
    bins = calibration_bins(pooled["probs"], pooled["labels"])
    shared = agreement(pooled["probs"], weak_probs, pooled["labels"])
    return ModelResult(
        name=name,
        role=role_of(name),
        accuracy=boot.accuracy[name].mean,
        lo=boot.accuracy[name].lo,
        hi=boot.accuracy[name].hi,
        per_seed=[float(seed["correct"].mean()) for seed in mine],
        pgr=boot.pgr.get(name),
        agreement=None
        if name == "supervisor"
        else {
            "all": shared.overall,
            "supervisor_right": shared.supervisor_right,
            "supervisor_wrong": shared.supervisor_wrong,
        },
        calibration=list(zip(bins.confidence_K.tolist(), bins.accuracy_K.tolist(), bins.count_K.tolist(), strict=True)),
        curves=[read_curves(path) for path in trained[name]] if name in trained else [],
        **{
            key: float(np.mean([s[key] for s in scored])) if key in scored[0] else None
            for key in ("auroc", "ece", "brier")
        },
    )


def times(found: Parts) -> list[StageTime]:
    from trimtab.stages._report_page import StageTime

    return [
        StageTime(record["label"], record["stage"], record["seconds"], cached=False, started=record["started"])
        for record, _ in found.results()
    ]


def _splits(found: Parts) -> list[SplitSummary]:
    from trimtab.stages._report_page import SplitSummary

    summaries = []
    for seed, folder in zip(found.seeds, found.of("split")[""], strict=True):
        for name, entry in json.loads((folder / "manifest.json").read_text()).items():
            classes = {str(label): count for label, count in entry["classes"].items()}
            summaries.append(SplitSummary(seed=seed, split=name, rows=entry["n"], classes=classes))
    return summaries


def label_quality(found: Parts) -> list[LabelQuality]:
    from trimtab.stages._report_page import LabelQuality

    return [
        LabelQuality(seed=seed, hop=hop, **{key: audited.get(key) for key in ("accuracy", "ece", "brier", "noise")})
        for hop, folders in enumerate(found.of("audit").values())
        for seed, folder in zip(found.seeds, folders, strict=True)
        for audited in [json.loads((folder / "metrics.json").read_text())]
    ]


def metrics_of(data: ReportData) -> Metrics:
    values: dict[str, float | None] = {}
    for model in data.models:
        values |= {f"{model.name}/accuracy": model.accuracy, f"{model.name}/accuracy_lo": model.lo}
        values |= {f"{model.name}/accuracy_hi": model.hi}
        if model.role == "student" and model.pgr and model.pgr.value is not None:
            values |= {f"{model.name}/pgr": model.pgr.value, f"{model.name}/pgr_lo": model.pgr.lo}
            values |= {f"{model.name}/pgr_hi": model.pgr.hi}
            values |= {f"{model.name}/pgr_informative": float(model.pgr.status == "ok")}
    return {name: float(value) for name, value in values.items() if value is not None}

"""Debates that are kept are traces: a span for every turn and judging, what was asked, the verdict."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from tests.serving.kit import until

from trimtab.run.track_words import connect
from trimtab.serving.config import GuidedArgs
from trimtab.serving.recorded import Keeper

pytestmark = pytest.mark.slow

BEGAN = 1_800_000_000_000_000_000
EVENTS = [
    {"event": "begin", "answers": ["Paris", "Rome"], "at": BEGAN + 1},
    {"event": "judged", "after": 0, "judges": {"one": [0.5, 0.5]}, "panel": [0.5, 0.5], "at": BEGAN + 2_000_000},
    {"event": "said", "speaker": 0, "round": 0, "text": "so", "at": BEGAN + 5_000_000},
    {"event": "judged", "after": 1, "judges": {"one": [0.6, 0.4]}, "panel": [0.6, 0.4], "at": BEGAN + 7_000_000},
    {"event": "verdict", "answer": 0, "text": "Paris", "probabilities": [0.6, 0.4], "at": BEGAN + 8_000_000},
]


def arguments(storage: Path) -> GuidedArgs:
    duel = {"debater": "strong", "judges": ["one"]}
    models = dict.fromkeys(("strong", "one"), "nowhere/none")
    return GuidedArgs.model_validate({"models": models, "debates": {"duel": duel}, "storage": str(storage)})


def test_a_debate_is_a_trace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    Keeper(arguments(tmp_path), "duel", "v1").keep({"question": "Which?"}, BEGAN, EVENTS)

    def traces():
        experiment = client.get_experiment_by_name("serving")
        found = client.search_traces(locations=[experiment.experiment_id]) if experiment else []
        return [one for one in found if one.info.tags.get("trimtab.ensemble") and len(one.data.spans) == 4]

    until(traces, seconds=300)
    (trace,) = traces()
    root, *spans = sorted(trace.data.spans, key=lambda span: (span.parent_id is not None, span.start_time_ns))
    assert trace.info.tags["trimtab.ensemble_version"] == "v1"
    assert (root.name, root.inputs, root.outputs["text"]) == ("duel", {"question": "Which?"}, "Paris")
    assert [span.name for span in spans] == ["judges after 0", "turn 0.0", "judges after 1"]
    assert spans[1].outputs == {"speaker": 0, "round": 0, "text": "so"}
    assert (spans[1].start_time_ns, spans[1].end_time_ns) == (EVENTS[1]["at"], EVENTS[2]["at"])
    assert root.end_time_ns == EVENTS[-1]["at"]


def test_what_cannot_be_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://x")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        Keeper(arguments(tmp_path), "duel", "v1").keep({}, BEGAN, EVENTS)
        until(lambda: caplog.records, seconds=300)
    assert "a debate of duel is not kept in MLflow" in caplog.text

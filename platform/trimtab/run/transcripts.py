"""Debates that a server was asked to keep, in MLflow: a trace each, with a span for every turn and every judging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.run.deployments import ENSEMBLE, EXPERIMENT, VERSION
from trimtab.run.track_words import artifacts_of, connect, experiment_id


def keep(facts: Mapping[str, Any]) -> str:
    """The id of the trace. `facts`: uri, ensemble, version, asked (what was asked), events and when they came.

    Each event is what the server told the client, with `at` in nanoseconds of the epoch.
    """
    client = connect(facts["uri"])
    import mlflow

    mlflow.set_tracking_uri(facts["uri"])
    experiment = experiment_id(client, EXPERIMENT, artifacts_of(facts["uri"]))
    events: Sequence[dict[str, Any]] = facts["events"]
    root = mlflow.start_span_no_context(
        facts["ensemble"],
        span_type="CHAIN",
        inputs=facts["asked"],
        tags={ENSEMBLE: facts["ensemble"], VERSION: facts["version"]},
        experiment_id=experiment,
        start_time_ns=facts["began"],
    )
    began = facts["began"]
    for event in events:
        told = {name: value for name, value in event.items() if name not in ("event", "at")}
        if event["event"] in ("said", "judged"):
            kind = "LLM" if event["event"] == "said" else "EVALUATOR"
            name = f"turn {told['speaker']}.{told['round']}" if kind == "LLM" else f"judges after {told['after']}"
            span = mlflow.start_span_no_context(name, span_type=kind, parent_span=root, start_time_ns=began)
            span.set_outputs(told)
            span.end(end_time_ns=event["at"])
            began = event["at"]
        if event["event"] == "verdict":
            root.set_outputs(told)
    root.end(end_time_ns=events[-1]["at"])
    mlflow.flush_trace_async_logging()
    return root.trace_id

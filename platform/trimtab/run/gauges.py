"""What runs and searches say, as metrics that Ray exports with its own, on the metrics port of the driver's node.

As exported: ray_trimtab_stages_total{stage,status}; ray_trimtab_training_step, ray_trimtab_training_loss and
ray_trimtab_training_grad_norm{stage_id,label}; ray_trimtab_trials{search,status} and
ray_trimtab_search_best{search,metric}.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from trimtab.run.joining import initialised
from trimtab.run.log import Event
from trimtab.training.curves import TRAININGS

if TYPE_CHECKING:
    from ray.util.metrics import Metric

STAGES, TRIALS, BEST = "trimtab_stages_total", "trimtab_trials", "trimtab_search_best"
STEP, LOSS, NORM = "trimtab_training_step", "trimtab_training_loss", "trimtab_training_grad_norm"
OF_TRAINING = ("stage_id", "label")
TOLD = {
    STAGES: ("Stages that ended, by how.", ("stage", "status")),
    STEP: ("The step that a training is at.", OF_TRAINING),
    LOSS: ("A training's loss.", OF_TRAINING),
    NORM: ("The norm of a training's gradient.", OF_TRAINING),
    TRIALS: ("Trials of a search; `earlier` are those that counted when it was started.", ("search", "status")),
    BEST: ("The best value of a search's metric.", ("search", "metric")),
}


class Gauges:
    """Listens to the log of a run or a search. What is said before this process is at a cluster is exported then."""

    def __init__(self) -> None:
        self.due: dict[tuple[str, tuple[str, ...]], float] = {}
        self._made: dict[str, Metric] = {}
        self._labels: dict[str, str] = {}
        self._search: Event = {}
        self._running: set[int] = set()
        self._trials: Counter[str] = Counter()
        self._best: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        acts = {
            "stage_start": self._stage_start,
            "stage_end": self._stage_end,
            "progress": self._progress,
            "metrics": self._values,
            "run_start": self._run_start,
            "search_plan": self._search_plan,
            "trial_start": self._trial_start,
            "trial_end": self._trial_end,
            "run_end": self._run_end,
        }
        act = acts.get(event["event"])
        if act:
            act(event)
        if self.due and initialised():
            self._export()

    def _stage_start(self, event: Event) -> None:
        self._labels[event["stage_id"]] = event["label"]

    def _stage_end(self, event: Event) -> None:
        series = STAGES, (event["stage_id"].rpartition("-")[0], event["status"])
        self.due[series] = self.due.get(series, 0) + 1

    def _progress(self, event: Event) -> None:
        if event["stage_id"].rpartition("-")[0] in TRAININGS:
            self._of_training(STEP, event, event["done"])

    def _values(self, event: Event) -> None:
        for name, said in ((LOSS, "loss"), (NORM, "grad_norm")):
            if said in event["values"]:
                self._of_training(name, event, event["values"][said])

    def _of_training(self, name: str, event: Event, value: float) -> None:
        self.due[name, (event["stage_id"], self._labels.get(event["stage_id"], ""))] = value

    def _run_start(self, event: Event) -> None:
        if event["kind"] == "search":
            self._search = event

    def _search_plan(self, event: Event) -> None:
        self._count("earlier", event["have"])

    def _trial_start(self, event: Event) -> None:
        self._running.add(event["trial"])
        self._count("running", len(self._running))

    def _trial_end(self, event: Event) -> None:
        self._running.discard(event["trial"])
        self._trials[event["status"]] += 1
        self._count("running", len(self._running))
        self._count(event["status"], self._trials[event["status"]])
        metrics, modes = (_listed(self._search["job"][field]) for field in ("metric", "mode"))
        for place, value in enumerate(event["objectives"] or ()):
            pick = {"max": max, "min": min}[modes[place % len(modes)]]
            self._found(metrics[place], pick(value, self._best.get(metrics[place], value)))

    def _run_end(self, event: Event) -> None:
        for name, value in event["metrics"].items() if self._search else ():
            if name.startswith("best/"):
                self._found(name.removeprefix("best/"), value)

    def _count(self, status: str, count: int) -> None:
        self.due[TRIALS, (self._search["run_id"], status)] = count

    def _found(self, metric: str, value: float) -> None:
        self._best[metric] = value
        self.due[BEST, (self._search["run_id"], metric)] = value

    def _export(self) -> None:
        from ray.util.metrics import Counter as Count
        from ray.util.metrics import Gauge

        for (name, values), value in self.due.items():
            said, keys = TOLD[name]
            if name not in self._made:
                self._made[name] = (Count if name == STAGES else Gauge)(name, said, keys)
            tags = dict(zip(keys, values, strict=True))
            self._made[name].inc(value, tags) if name == STAGES else self._made[name].set(value, tags)
        self.due.clear()


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)

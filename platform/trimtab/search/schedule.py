"""Ray Tune's side of a search: trials in actors, proposals from a study, and who is stopped early."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher as TuneSearcher

from trimtab.search.population import Generations, Population, trained
from trimtab.search.spec import Asha, Median, Pbt
from trimtab.search.study import Trials
from trimtab.search.trial import Plan, Trial

HEARTBEAT_S = 1.0
ENDS_WITHIN_S = 30.0
Result = dict[str, Any]


class TrialActor(tune.Trainable):
    """Runs one trial after another, each in a thread, and hands on what it says.

    A trial that told a signal waits until the scheduler has had its say, if there is one. A trial that is stopped ends
    its stage at the stage's next event, and its thread is awaited.
    """

    def setup(self, config: dict[str, Any]) -> None:
        plan = Plan.from_json(config["plan"])
        self.waits = config["waits"]
        self.said: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.stopping, self.go_on = threading.Event(), threading.Event()
        self.last: Result = {"progress": 0.0}
        self.trial = Trial(plan, config["number"], json.loads(config["values"]), self._tell, stop=self.stopping)
        self.thread = threading.Thread(target=self._run, name=f"trial {config['number']}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.said.put(self.trial())

    def _tell(self, result: Result) -> None:
        self.go_on.clear()
        self.said.put(result)
        if self.waits and "signal" in result:
            self.go_on.wait()

    def step(self) -> Result:
        """The next thing it says, or what it said last where it says nothing for a second."""
        self.go_on.set()
        try:
            result = self.said.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            return self.last
        while "signal" not in result and "done" not in result and not self.said.empty():
            result = self.said.get()
        self.last = {name: value for name, value in result.items() if name not in ("signal", "done")}
        return dict(result)

    def cleanup(self) -> None:
        self.stopping.set()
        self.go_on.set()
        self.thread.join(ENDS_WITHIN_S)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        if self.thread.is_alive():
            return False
        self.setup(new_config)
        return True


class Proposer(TuneSearcher):
    """Trials of a study as Ray Tune asks for them; what becomes of them goes back to the study."""

    def __init__(self, trials: Trials, **fixed: Any) -> None:
        super().__init__()
        self.trials, self.fixed = trials, fixed

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        found = self.trials.next(trial_id)
        if found is None:
            return TuneSearcher.FINISHED
        number, values = found
        return {"number": number, "values": json.dumps(values)} | self.fixed

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        self.trials.heard(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        self.trials.ended(trial_id, result, died=error)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """The study is what a search goes on from."""

    def save(self, checkpoint_path: str) -> None:
        """The study is what a search goes on from."""


class Enough(tune.Stopper):
    """Ends all when the time is up, or something else says why."""

    def __init__(self, trials: Trials, minutes: float | None, stopped: Callable[[], bool]) -> None:
        self.trials, self.stopped = trials, stopped
        self.until = time.monotonic() + 60 * minutes if minutes else None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: Result) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.stopped():
            self.trials.why = "interrupted"
        elif self.until and time.monotonic() > self.until and self.trials.why is None:
            self.trials.why = "minutes"
        return self.trials.why not in (None, "trials", "grid")


class MedianRule(MedianStoppingRule):
    """Never pauses a trial to let others catch up, and remembers only results that have the signal."""

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Result) -> None:
        if self._metric in result:
            super().on_trial_complete(tune_controller, trial, result)

    def _on_insufficient_samples(self, tune_controller: Any, trial: TuneTrial, time: float) -> str:
        return TrialScheduler.CONTINUE


def scheduler(trials: Trials) -> TrialScheduler:
    """Who is stopped early, by the held-out signal at shares of a trial; or who takes over from whom."""
    spec = trials.search.spec.scheduler
    watched = {"time_attr": "progress", "metric": "signal", "mode": "max"}
    if isinstance(spec, Asha):
        return AsyncHyperBandScheduler(
            **watched, max_t=1.0, grace_period=spec.grace, reduction_factor=spec.reduction, stop_last_trials=False
        )
    if isinstance(spec, Median):
        return MedianRule(**watched, grace_period=spec.grace, min_samples_required=spec.least)
    if isinstance(spec, Pbt):
        return Population(trials.space, spec, trials.search.spec.modes[0], seed=trials.search.spec.searcher.seed)
    return FIFOScheduler()


def actor(trials: Trials, plan: Plan) -> tuple[type[tune.Trainable], dict[str, Any]]:
    """What runs a trial, and what all trials are told. Raises JobError where a population cannot be trained."""
    spec, fixed = trials.search.spec.scheduler, {"plan": plan.as_json()}
    if isinstance(spec, Pbt):
        return Generations, fixed | {"student": trained(trials.search), "generations": spec.generations}
    return TrialActor, fixed | {"waits": spec.kind != "none"}

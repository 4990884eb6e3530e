"""What searches lean on in Ray and Optuna beyond what these promise: a new version that breaks it fails here first."""

from __future__ import annotations

import inspect
from typing import Any

import optuna
import pytest
from ray._private import services
from ray.tune.schedulers import MedianStoppingRule, PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

pytestmark = pytest.mark.slow


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (PopulationBasedTraining.on_trial_add, ["self", "tune_controller", "trial"]),
        (PopulationBasedTraining._get_new_config, ["self", "trial", "trial_to_clone"]),
        (MedianStoppingRule._on_insufficient_samples, ["self", "tune_controller", "trial", "time"]),
        (MedianStoppingRule.on_trial_complete, ["self", "tune_controller", "trial", "result"]),
    ],
)
def test_what_schedulers_of_ours_override_is_called_as_it_was(function: Any, expected: list[str]) -> None:
    assert parameters(function) == expected


def test_a_population_keeps_its_trials_by_their_state() -> None:
    assert PopulationBasedTraining(metric="a", mode="max", hyperparam_mutations={"b": [1]})._trial_state == {}
    assert parameters(_PBTTrialState) == ["trial"]


def test_ray_starts_its_processes_through_one_class_that_takes_a_process_group() -> None:
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)
    begun = services.ConsolePopen(["true"], process_group=0)
    assert begun.wait() == 0


def test_a_trial_that_was_asked_for_before_can_be_told_of_by_its_id() -> None:
    study = optuna.create_study()
    asked = study.ask()
    study.tell(optuna.Trial(study, asked._trial_id), 1.0)
    assert study.best_value == 1.0

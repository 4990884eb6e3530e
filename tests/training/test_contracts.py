"""What trimtab leans on in libraries that change: these fail first when a new version breaks it."""

from __future__ import annotations

import inspect
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from trimtab.run.joining import LOCAL, SETTINGS

pytestmark = pytest.mark.slow


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_get_train_sampler", ["self", "train_dataset"]),
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("create_optimizer", ["self", "model"]),
        ("log", ["self", "logs", "start_time"]),
        ("_prepare_inputs", ["self", "inputs"]),
    ],
)
def test_the_trainer_has_what_we_override(name, expected):
    from transformers import Trainer

    assert parameters(getattr(Trainer, name)) == expected


def test_the_training_loop_uses_it_the_way_we_expect():
    from transformers import Trainer

    step, epoch = inspect.getsource(Trainer.training_step), inspect.getsource(Trainer._run_epoch)
    assert "self.loss_is_scaled_for_ga" in step
    assert "self.compute_loss(" in step
    assert 'kwargs["scale_wrt_gas"] = False' in step
    assert "self.get_batch_samples(" in epoch
    assert "set_epoch(epoch)" in epoch
    assert "logging_nan_inf_filter" in epoch
    assert "self.evaluate(" in inspect.getsource(Trainer._evaluate)


def test_deepspeed_s_configuration_can_be_unset():
    from transformers.integrations import deepspeed

    assert parameters(deepspeed.unset_hf_deepspeed_config) == []
    deepspeed.unset_hf_deepspeed_config()
    assert not deepspeed.is_deepspeed_zero3_enabled()


def test_a_llama_runs_the_layers_that_its_configuration_counts():
    from transformers.models.llama import modeling_llama

    assert "self.layers[: self.config.num_hidden_layers]" in inspect.getsource(modeling_llama.LlamaModel.forward)


def test_a_classifier_reads_the_last_token_and_cuts_no_states():
    from transformers.modeling_layers import GenericForSequenceClassification

    source = inspect.getsource(GenericForSequenceClassification.forward)
    assert "last_non_pad_token = -1" in source
    assert "(token_indices * non_pad_mask).argmax(-1)" in source


def test_attention_can_be_chosen_after_loading():
    from transformers import PreTrainedModel

    assert parameters(PreTrainedModel.set_attn_implementation)[:2] == ["self", "attn_implementation"]


def test_deepspeed_s_shared_memory_op_can_be_built_ahead():
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert "verbose" in parameters(ShareMemCommBuilder.load)


def test_accelerate_gathers_zero_3_weights():
    from accelerate import Accelerator

    assert parameters(Accelerator.get_state_dict)[:2] == ["self", "model"]
    assert "_zero3_consolidated_16bit_state_dict" in inspect.getsource(Accelerator.get_state_dict)


def test_peft_trains_the_head_of_a_classifier_in_full():
    from peft.peft_model import PeftModelForSequenceClassification

    from trimtab.models.network import HEADS

    source = inspect.getsource(PeftModelForSequenceClassification)
    assert all(f'"{head}"' in source for head in HEADS)


def test_ray_train_reads_the_variables_that_we_set():
    ray = Path(find_spec("ray").submodule_search_locations[0])
    parts = [ray / "train", ray / "_private", ray / "_common", ray / "tune" / "trainable"]
    python = "".join(file.read_text() for part in parts for file in part.rglob("*.py"))
    for name in SETTINGS:
        assert f'"{name}"' in python, name
    flags = (ray / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    for name in LOCAL.keys() - {"RAY_AUTH_MODE"}:
        known = f'"{name}"' in python or name.removeprefix("RAY_").encode() in flags
        assert known, name


def test_ray_train_fails_and_restarts_as_we_ask():
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    failures = {"max_failures", "max_preemption_failures", "controller_failure_limit"}
    assert failures <= set(parameters(FailureConfig))
    assert FailureConfig().max_preemption_failures == -1, "any number"
    assert {"name", "storage_path", "failure_config", "callbacks"} <= set(parameters(RunConfig))
    scaling = {"num_workers", "use_gpu", "resources_per_worker", "elastic_resize_monitor_interval_s"}
    assert scaling <= set(parameters(ScalingConfig))
    assert ScalingConfig(num_workers=(1, 2)).elasticity_enabled


def test_ray_train_tells_its_callbacks_which_workers_failed():
    from ray.exceptions import ActorDiedError
    from ray.train import UserCallback
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    from trimtab.training.witness import _gone

    assert list(parameters(UserCallback.after_exception)) == ["self", "run_context", "worker_exceptions"]
    found = _gone(WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError()))
    assert (found.kind, found.dead, found.preempted) == ("ActorDiedError", True, False)
    assert "health check failed" not in found.text
    found = _gone(KeyError("what"))
    assert (found.kind, found.dead) == ("KeyError", False)
    assert _gone(WorkerHealthCheckTimeoutError("it hangs")).kind == "WorkerHealthCheckTimeoutError"


def test_the_environment_stands_before_torch():
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"

"""Micro-batches that make up an effective batch, and DeepSpeed's configuration."""

from __future__ import annotations

import pytest

from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.training.zero import Batching, batching, deepspeed_config


@pytest.mark.parametrize(
    ("batch_size", "workers", "limit", "expected"),
    [
        (16, 1, None, Batching(16, 1)),
        (16, 1, 4, Batching(4, 4)),
        (16, 2, None, Batching(8, 1)),
        (16, 2, 4, Batching(4, 2)),
        (12, 1, 5, Batching(4, 3)),
        (7, 1, 4, Batching(1, 7)),
        (16, 1, 64, Batching(16, 1)),
    ],
)
def test_the_largest_micro_batch_within_the_limit(batch_size, workers, limit, expected):
    found = batching(batch_size, workers, limit)
    assert found == expected
    assert found.micro * found.accumulation * workers == batch_size


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ResourceError, match="batch_size 16 cannot be shared by 3 workers"):
        batching(16, 3, None)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_configuration_follows_compute(stage):
    config = deepspeed_config(Batching(4, 2), compute=Compute(zero_stage=stage), bf16=True, max_grad_norm=0.5)
    assert config["zero_optimization"]["stage"] == stage
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (4, 2)
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True}

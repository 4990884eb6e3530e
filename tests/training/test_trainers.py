"""The Trainer's overridden parts on their own."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow


def steps(rows: int, batch_size: int, *, workers: int, micro: int, epoch: int) -> list[list[int]]:
    """The rows of every optimiser step, over all workers, the way accelerate shares them out."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from trimtab.training.trainers._base import WholeBatches

    sampler = WholeBatches(rows, batch_size=batch_size, seed=3)
    sampler.set_epoch(epoch)
    batches = BatchSampler(sampler, micro, drop_last=False)
    shards = [list(BatchSamplerShard(batches, workers, rank)) for rank in range(workers)]
    each = batch_size // (micro * workers)
    return [
        sorted(row for shard in shards for batch in shard[first : first + each] for row in batch)
        for first in range(0, len(shards[0]), each)
    ]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_step_sees_the_same_rows_whatever_the_workers(epoch):
    one = steps(53, 12, workers=1, micro=12, epoch=epoch)
    assert [len(rows) for rows in one] == [12] * 4
    for workers, micro in ((1, 4), (1, 3), (2, 6), (2, 3), (3, 4), (4, 3), (3, 2)):
        assert steps(53, 12, workers=workers, micro=micro, epoch=epoch) == one


def test_epochs_are_shuffled_anew_and_no_row_comes_twice():
    first, second = (steps(53, 12, workers=2, micro=3, epoch=epoch) for epoch in (0, 1))
    assert first != second
    rows = [row for step in first for row in step]
    assert len(rows) == len(set(rows)) == 48


def test_decay_and_the_head_s_learning_rate_go_to_the_right_weights(tiny, tmp_path):
    from transformers import TrainingArguments

    from trimtab.models.network import load_network, train_upper
    from trimtab.training.trainers._base import Settings
    from trimtab.training.trainers.labels import LabelTrainer

    model = load_network(tiny.spec().model, tmp_path, n_classes=2)
    train_upper(model, 1)
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.1, weight_decay=0.5, use_cpu=True, report_to=[])
    settings = Settings([], batch_size=4, head_lr_scale=3.0)
    trainer = LabelTrainer(model=model, args=args, objective=tiny.spec().objective, settings=settings)
    optimizer = trainer.create_optimizer()
    assert optimizer is trainer.create_optimizer()
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = {names[id(w)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for w in g["params"]}
    assert found.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert found["score.weight"] == pytest.approx((0.3, 0.5))
    assert found["model.norm.weight"] == pytest.approx((0.1, 0.0))
    assert found["model.layers.3.mlp.up_proj.weight"] == pytest.approx((0.1, 0.5))
    assert optimizer.defaults["fused"]


def test_seen_rows_join_and_are_chosen():
    from trimtab.training.trainers.labels import Seen

    one = Seen(torch.tensor([4, 1]), torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.eye(2))
    both = Seen.joined([one, one[one.row_N.argsort()]])
    assert both.row_N.tolist() == [4, 1, 1, 4]
    assert both[-1:].logits_NC.tolist() == [[0.0, 1.0]]

"""Losses and gradients that are not finite: what each policy does about them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from trimtab.errors import StageError
from trimtab.methods.objectives._base import Loss
from trimtab.training.curves import read_curves
from trimtab.training.nonfinite import At, Counts, Guarded, Policy

AT = At(3, 8)
IDS = ["a", "b", "c", "d"]


class Finding:
    """The loss and outputs of rows, the way a trainer finds them; counts how often it is asked."""

    def __init__(self, loss_B, finite_B=None):
        self.loss_B = loss_B
        self.finite_B = loss_B.isfinite() if finite_B is None else finite_B
        self.asked = []

    def __call__(self, inputs):
        from types import SimpleNamespace

        row_B = inputs["row"]
        self.asked.append(row_B.tolist())
        loss = Loss(self.loss_B[row_B].mean(), {"rows": float(len(row_B))})
        return SimpleNamespace(loss=loss, finite_B=self.finite_B[row_B])


def given(policy: Policy, finding: Finding, rows=(0, 1, 2, 3)):
    inputs = {"row": torch.tensor(rows), "states": torch.zeros(len(rows), 2)}
    return policy.loss(finding(inputs), inputs, again=finding, at=AT)


def test_what_is_finite_passes_untouched():
    finding = Finding(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    loss, rows = given(Policy("skip", IDS), finding)
    assert (loss.value.item(), loss.metrics, rows, len(finding.asked)) == (2.5, {"rows": 4.0}, 4, 1)


def test_stop_names_the_rows_and_the_way_out():
    with pytest.raises(StageError) as error:
        given(Policy("stop", IDS), Finding(torch.tensor([1.0, torch.nan, 3.0, torch.inf])))
    assert "the loss is nan at step 3 of 8, from rows b, d: look at them, or lower learning_rate" in str(error.value)
    assert "on_nonfinite: skip" in str(error.value)


def test_a_loss_that_is_not_finite_though_all_outputs_are_names_all_its_rows():
    with pytest.raises(StageError, match="from rows a, b, c, d"):
        given(Policy("stop", IDS), Finding(torch.tensor([1.0, torch.inf, 3.0, 4.0]), torch.ones(4, dtype=torch.bool)))


def test_skip_leaves_rows_out_and_keeps_the_mean_over_the_effective_batch(tmp_path):
    policy, finding = Policy("skip", IDS, tmp_path), Finding(torch.tensor([1.0, torch.nan, 3.0, 5.0]))
    loss, rows = given(policy, finding)
    assert finding.asked == [[0, 1, 2, 3], [0, 2, 3]]
    assert (loss.value.item(), rows, loss.metrics) == (pytest.approx((1 + 3 + 5) / 4), 3, {"rows": 3.0})
    assert policy.metrics() == {"train/skipped_rows": 1, "train/skipped_steps": 0}
    noted = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert noted == [{"step": 3, "not_finite": "loss", "rows": ["b"], "then": "left out"}]


def test_a_rank_without_any_finite_row_gives_a_loss_of_zero_from_a_row_that_was_fine():
    policy, finding = Policy("skip", IDS), Finding(torch.tensor([7.0, torch.nan, torch.nan, 1.0]))
    given(policy, finding, (0,))
    loss, rows = given(policy, finding, (1, 2))
    assert (loss.value.item(), rows, loss.metrics) == (0.0, 0, {})
    assert finding.asked[-1] == [0]
    assert policy.counts.rows == 2


def test_where_nothing_finite_can_be_found_even_skip_stops():
    with pytest.raises(StageError, match="the loss is nan at step 3 of 8, from rows b"):
        given(Policy("skip", IDS), Finding(torch.full((4,), torch.nan)), (1,))


def test_going_back_is_counted_and_ends():
    from pathlib import Path

    policy = Policy("rollback", IDS)
    for _ in range(3):
        policy.went_back(AT, Path("step-00000001"))
    assert policy.counts == Counts(rollbacks=3, factor=0.125)
    assert policy.metrics() == {"train/rollbacks": 3}
    with pytest.raises(StageError, match="not finite again at step 3 of 8 and training went back 3 times"):
        policy.went_back(AT, Path("step-00000001"))
    with pytest.raises(StageError, match="there is no checkpoint to go back to"):
        Policy("rollback", IDS).went_back(AT, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_log_hides_what_is_not_finite(value):
    with pytest.raises(StageError, match=f"eval_loss is {value} at step 3 of 8"):
        Policy("stop", IDS).logged({"loss": 1.0, "eval_loss": value}, AT)
    Policy("skip", IDS).logged({"eval_loss": value}, AT)


def test_guarded_adamw_takes_no_step_on_a_gradient_that_is_not_finite():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Guarded([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, torch.nan])
    optimizer.step()
    assert optimizer.overflow and weight.tolist() == [1, 1]
    weight.grad = torch.ones(2)
    optimizer.step()
    assert not optimizer.overflow and (weight < 1).all()


@pytest.mark.slow
def test_rows_that_say_nothing_are_neither_context_nor_remembered(tiny):
    from trimtab.training.trainers.labels import LabelTrainer, Seen

    trainer = LabelTrainer.__new__(LabelTrainer)
    trainer.objective = tiny.spec(objective={"kind": "logconf", "buffer": 8}).objective
    trainer._recent = []
    trainer._step = Seen(
        torch.arange(4), torch.tensor([[0.0, 1], [torch.nan, 1], [2, 0], [0, 3]]), torch.eye(2)[[0, 1, 0, 1]]
    )
    logits_NC, weak_NC = trainer._context(trainer._step[:1])
    assert logits_NC.tolist() == [[2, 0], [0, 3]]
    assert weak_NC.tolist() == [[1, 0], [0, 1]]
    assert trainer.remembered()["row_N"].tolist() == [0, 2, 3]


@pytest.mark.chaos
@pytest.mark.slow
class TestOnANetwork:
    @pytest.fixture
    def poisoned(self, tiny, tmp_path):
        """Train the upper half on states of which one row's are NaN: four steps of sixteen rows."""
        from trimtab.models.features import States, write_states
        from trimtab.stages.train import train

        usual = {"tune": {"kind": "top", "layers": 2}, "num_train_epochs": 1}
        ids = [row["id"] for row in tiny.table(tiny.weak)]
        states = [state.clone() for state in States(tiny.states(tiny.spec(**usual), tiny.weak)).rows(ids)]
        states[7][0, 0] = torch.nan
        (tmp_path / "states").mkdir()
        write_states(tmp_path / "states", ids, states)

        def run(name, spec, **compute):
            out = tmp_path / name
            out.mkdir()
            places = {"data": tiny.weak, "features": tmp_path / "states"}
            metrics = train(tiny.spec(**usual, **spec), out, compute=tiny.compute(**compute), **places)
            return out, metrics

        return run

    def test_skip_leaves_out_the_row_whatever_the_micro_batch_and_the_stage(self, poisoned):
        whole, metrics = poisoned("whole", {"on_nonfinite": "skip"}, zero_stage=2)
        alone, same = poisoned("alone", {"on_nonfinite": "skip"}, micro_batch=1, zero_stage=3)
        for found in (metrics, same):
            assert (found["train/skipped_rows"], found["train/skipped_steps"], found["train/steps"]) == (1, 0, 4)
        one, other = (load_file(out / "model" / "model.safetensors") for out in (whole, alone))
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5
        assert [json.loads((out / "skipped.jsonl").read_text())["rows"] for out in (whole, alone)] == [["r71"]] * 2
        assert metrics["train/loss"] == pytest.approx(same["train/loss"], abs=1e-5)

    def test_statistics_of_the_batch_are_taken_without_it(self, poisoned):
        spec = {"on_nonfinite": "skip", "objective": {"kind": "logconf", "buffer": 24, "warmup": 0.1}}
        outs = [poisoned(f"of{size}", spec, micro_batch=size) for size in (16, 4)]
        assert [metrics["train/skipped_rows"] for _, metrics in outs] == [1, 1]
        one, other = (load_file(out / "model" / "model.safetensors") for out, _ in outs)
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5

    def test_rollback_takes_the_last_good_state_and_half_the_learning_rate_on(self, poisoned):
        out, metrics = poisoned("back", {"on_nonfinite": "rollback", "lr_scheduler_type": "constant"})
        assert metrics["train/rollbacks"] == 1
        noted = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
        assert [entry["rows"] for entry in noted] == [["r71"], []]
        assert noted[1]["then"] == "back to step-00000000, with 0.5 of the learning rate"
        rates = {step: values["learning_rate"] for step, values in read_curves(out) if "learning_rate" in values}
        assert rates == {step: 3e-3 * (0.5 if step >= noted[0]["step"] else 1) for step in (1, 2, 3, 4)}
        assert not (out / "partial").exists()

    @pytest.fixture
    def steep(self, tiny, tmp_path, monkeypatch):
        """Train with a loss that is finite at every step and a gradient that is not at some."""
        from trimtab.stages.train import train
        from trimtab.training import loop
        from trimtab.training.trainers._base import Found
        from trimtab.training.trainers.labels import LabelTrainer

        def run(spec, *, steps, **compute):
            class Steep(LabelTrainer):
                def found(self, model, inputs):
                    found = super().found(model, inputs)
                    if self.state.global_step + 1 not in steps or not model.training:
                        return found
                    return Found(Loss(found.loss.value + (found.loss.value * 0).sqrt()), found.finite_B)

            monkeypatch.setattr(loop, "LabelTrainer", Steep)
            return train(tiny.spec(**spec), tmp_path, compute=tiny.compute(**compute), data=tiny.weak)

        return run

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("stage", [0, 1, 2, 3])
    def test_a_step_whose_gradient_is_not_finite_leaves_the_weights_alone(self, tiny, tmp_path, steep, stage, dtype):
        model = {"source": str(tiny.model), "dtype": dtype}
        policy = "rollback" if stage == 1 else "skip"
        spec = {"model": model, "on_nonfinite": policy, "num_train_epochs": 0.25}
        metrics = steep(spec, steps={1}, zero_stage=stage)
        counted = {"train/rollbacks": 1} if stage == 1 else {"train/skipped_rows": 0, "train/skipped_steps": 1}
        assert counted.items() <= metrics.items()
        before, after = load_file(tiny.model / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
        assert all(
            torch.equal(after[name], before[name].to(after[name].dtype)) for name in after.keys() & before.keys()
        )
        assert not after["score.weight"].any()

    def test_training_goes_on_after_a_step_left_out(self, steep):
        metrics = steep({"on_nonfinite": "skip"}, steps={2, 5}, micro_batch=4)
        assert metrics["train/skipped_steps"] == 2
        assert metrics["train/steps"] == 8
        assert metrics["train/loss"] < 0.69

    def test_stop_names_the_rows_of_the_step(self, steep):
        with pytest.raises(
            StageError, match=r"gradient is not finite .* at step 2 of 8, from rows r.*, r.* and 8 more"
        ):
            steep({}, steps={2}, micro_batch=8)

    def test_training_goes_back_three_times_and_no_more(self, steep):
        with pytest.raises(StageError, match="at step 4 of 8 and training went back 3 times"):
            steep({"on_nonfinite": "rollback"}, steps={1, 2, 3, 4})

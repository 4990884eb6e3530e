"""Training as a whole, on a tiny network in float32: what must not depend on where and in which pieces it runs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from trimtab.errors import DataError, StageError
from trimtab.training.curves import read_curves

pytestmark = pytest.mark.slow

LOGCONF = {"kind": "logconf", "warmup": 0.1}
OBJECTIVES = {"xent": {"kind": "xent"}, "logconf": LOGCONF, "buffer": LOGCONF | {"buffer": 24}}
TUNES = {"full": {"kind": "full"}, "top": {"kind": "top", "layers": 2}, "lora": {"kind": "lora", "alpha": 64}}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def furthest(left, right) -> float:
    """The largest difference between any two weights of the same name."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize(
    "objective", [{"kind": "xent"}, LOGCONF, LOGCONF | {"buffer": 24}], ids=["xent", "logconf", "buffer"]
)
def test_the_effective_batch_decides_not_the_micro_batch(tiny, objective):
    spec = tiny.spec(objective=objective, learning_rate=1e-3)
    whole, half, quarter = (weights(tiny.trained(spec, tiny.compute(micro_batch=m))) for m in (16, 8, 4))
    assert furthest(whole, half) < 1e-5
    assert furthest(whole, quarter) < 1e-5


def test_objectives_and_their_buffer_do_change_what_is_learned(tiny):
    specs = [tiny.spec(objective=objective, learning_rate=1e-3) for objective in OBJECTIVES.values()]
    xent, logconf, buffer = (weights(tiny.trained(spec, tiny.compute(micro_batch=16))) for spec in specs)
    assert furthest(xent, logconf) > 1e-4
    assert furthest(logconf, buffer) > 1e-4
    endless = tiny.spec(objective=LOGCONF | {"buffer": 1000}, learning_rate=1e-3)
    assert furthest(buffer, weights(tiny.trained(endless, tiny.compute(micro_batch=16)))) > 1e-4


@pytest.mark.parametrize("tune", TUNES)
def test_every_zero_stage_trains_the_same_weights(tiny, tune):
    spec = tiny.spec(tune=TUNES[tune])
    inputs = {"features": tiny.states(spec, tiny.weak)} if tune == "top" else {}
    zero, *others = (weights(tiny.trained(spec, tiny.compute(zero_stage=z), **inputs)) for z in (0, 1, 2, 3))
    assert max(furthest(zero, other) for other in others) < 2e-5


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("tune", TUNES)
def test_the_saved_folder_loads_whole_and_answers_as_the_trained_model_did(tiny, tune, zero_stage):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    spec = tiny.spec(tune=TUNES[tune], eval_fraction=0.25)
    inputs = {"features": tiny.states(spec, tiny.weak)} if tune == "top" else {}
    out = tiny.trained(spec, tiny.compute(zero_stage=zero_stage), **inputs)
    model, report = AutoModelForSequenceClassification.from_pretrained(out / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == len(model.base_model.layers) == 4
    trained_on = set((out / "trained_on.txt").read_text().splitlines())
    held = [row for row in tiny.table(tiny.weak) if row["id"] not in trained_on]
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    with torch.inference_mode():
        logits = model(**tokenizer([row["text"] for row in held], return_tensors="pt", padding=True)).logits
    weak = torch.tensor([row["soft_label"] for row in held])
    last = read_curves(out)[-1][1]
    assert torch.nn.functional.cross_entropy(logits, weak).item() == pytest.approx(last["eval_loss"], abs=1e-5)
    assert (logits.argmax(-1) == weak.argmax(-1)).float().mean().item() == pytest.approx(last["eval_agreement"])


@pytest.mark.parametrize("tune", TUNES)
def test_a_model_folder_is_safetensors_with_a_card(tiny, tune):
    spec = tiny.spec(tune=TUNES[tune])
    inputs = {"features": tiny.states(spec, tiny.weak)} if tune == "top" else {}
    out = tiny.trained(spec, tiny.compute(zero_stage=1), **inputs)
    files = {path.name for path in out.rglob("*") if path.is_file()}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    card = json.loads((out / "model" / "trimtab.json").read_text())
    assert card == {"n_classes": 2, "spec": spec.model_dump(mode="json")}
    assert "trained with xent" in (out / "model" / "README.md").read_text()
    assert (out / "adapter" / "adapter_model.safetensors").exists() == (tune == "lora")
    assert not (out / "trainer").exists()


def test_adapters_on_the_base_are_the_merged_model(tiny):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    spec = tiny.spec(tune=TUNES["lora"])
    out = tiny.trained(spec, tiny.compute(zero_stage=1))
    base = AutoModelForSequenceClassification.from_pretrained(tiny.model, num_labels=2, dtype="float32")
    merged = PeftModel.from_pretrained(base, out / "adapter").merge_and_unload().state_dict()
    assert furthest(weights(out), {name: merged[name] for name in weights(out)}) < 1e-6


def test_only_what_is_tuned_moves(tiny):
    spec = tiny.spec(tune=TUNES["top"])
    before = load_file(tiny.model / "model.safetensors")
    after = weights(tiny.trained(spec, tiny.compute(zero_stage=1), features=tiny.states(spec, tiny.weak)))
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert moved == {n for n in after if n.startswith(("model.layers.2.", "model.layers.3.", "model.norm", "score"))}


def test_after_zero_3_a_load_is_whole_and_layers_compute_as_before(tiny):
    from trimtab.models.network import load_network

    linear = torch.nn.functional.linear
    tiny.trained(tiny.spec(seed=1), tiny.compute(zero_stage=3))
    assert torch.nn.functional.linear is linear
    model = load_network(tiny.spec().model, tiny.compute().cache)
    assert all(weight.numel() and not hasattr(weight, "ds_id") for weight in model.parameters())


def test_after_a_failure_under_zero_3_a_load_is_whole(tiny, tmp_path):
    from trimtab.models.network import load_network

    with pytest.raises(StageError):
        _poisoned(tiny, tmp_path, tiny.compute(zero_stage=3))
    model = load_network(tiny.spec().model, tiny.compute().cache)
    assert all(weight.numel() and not hasattr(weight, "ds_id") for weight in model.parameters())


def test_cached_states_train_what_the_whole_network_trains_step_by_step(tiny):
    spec = tiny.spec(tune=TUNES["top"])
    cached = tiny.trained(spec, features=tiny.states(spec, tiny.weak))
    whole = tiny.trained(spec)
    assert furthest(weights(cached), weights(whole)) < 1e-5
    for (step, left), (same, right) in zip(read_curves(cached), read_curves(whole), strict=True):
        assert step == same
        assert left == pytest.approx(right, abs=1e-4)


def _poisoned(tiny, out, compute):
    """Train the upper half on states of which one row's are NaN."""
    from trimtab.models.features import States, write_states
    from trimtab.stages.train import train

    spec = tiny.spec(tune=TUNES["top"], num_train_epochs=1)
    ids = [row["id"] for row in tiny.table(tiny.weak)]
    states = [state.clone() for state in States(tiny.states(spec, tiny.weak)).rows(ids)]
    states[7][0, 0] = torch.nan
    (out / "states").mkdir()
    (out / "model").mkdir()
    write_states(out / "states", ids, states)
    return train(spec, out / "model", compute=compute, data=tiny.weak, features=out / "states")


def test_a_loss_that_is_not_finite_stops_training_and_names_step_and_row(tiny, tmp_path):
    with pytest.raises(StageError, match=r"loss is nan at step [1-4] of 4, from rows r71:"):
        _poisoned(tiny, tmp_path, tiny.compute(micro_batch=4))
    assert not (tmp_path / "model" / "model").exists()


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(tiny, tmp_path):
    from trimtab.stages.train import train

    spec = tiny.spec(learning_rate=1e39, num_train_epochs=0.25)
    with pytest.raises(StageError, match="not finite after the last step"):
        train(spec, tmp_path, compute=tiny.compute(), data=tiny.weak)


def test_too_few_rows_for_one_batch_are_refused(tiny, tmp_path):
    from trimtab.stages.train import train

    with pytest.raises(DataError, match="64 rows to train on but batch_size is 65"):
        train(tiny.spec(batch_size=65), tmp_path, compute=tiny.compute(), data=tiny.weak)


@pytest.mark.parametrize("objective", [{"kind": "xent"}, LOGCONF | {"buffer": 24}], ids=["xent", "logconf"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_oracle_rows_steer_nothing(tiny, objective, dropout):
    spec = tiny.spec(objective=objective, tune=TUNES["lora"] | {"dropout": dropout}, eval_fraction=0.25)
    compute = tiny.compute(micro_batch=8)
    without, with_oracle = tiny.trained(spec, compute), tiny.trained(spec, compute, oracle=tiny.test)
    assert furthest(weights(without), weights(with_oracle)) == 0
    logged = {name for _, values in read_curves(with_oracle) for name in values}
    assert {"oracle/accuracy", "eval_agreement", "eval_loss", "loss", "grad_norm", "learning_rate"} <= logged
    assert {name for name in logged if "oracle" in name} == {"oracle/accuracy"}
    assert not any("oracle" in name for _, values in read_curves(without) for name in values)


def test_curves_reach_the_last_step(tiny):
    out = tiny.trained(tiny.spec(eval_fraction=0.25, num_train_epochs=3, objective=LOGCONF), oracle=tiny.test)
    curves = read_curves(out)
    assert {"loss", "objective/aux_weight", "objective/self_label_disagreement"} <= curves[-3][1].keys()
    assert [step for step, _ in curves[-3:]] == [9, 9, 9]
    assert json.loads((out / "metrics.json").read_text())["train/rows"] == 48


def test_bfloat16_and_float32_follow_one_another(tiny):
    spec = tiny.spec(model={"source": str(tiny.model), "dtype": "bfloat16"}, learning_rate=1e-3)
    low, high = weights(tiny.trained(spec)), weights(tiny.trained(tiny.spec(learning_rate=1e-3)))
    assert {weight.dtype for weight in low.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in high.values()} == {torch.float32}
    assert furthest({n: w.float() for n, w in low.items()}, high) < 0.02

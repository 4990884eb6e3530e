"""Stage label: weak labels are the model's probabilities, with what they come from."""

from __future__ import annotations

import pytest
import torch

from trimtab.data.tables import WeakLabel, read_table
from trimtab.errors import DataError, StageError
from trimtab.parts import LabelSpec
from trimtab.stages.evaluate import OWN_ROWS, classify
from trimtab.stages.label import label

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tiny):
    return tiny.trained(tiny.spec(eval_fraction=0.25, learning_rate=0.01))


def labels(tiny, out, model, data, **fields):
    out.mkdir(exist_ok=True)
    metrics = label(LabelSpec(**fields), out, compute=tiny.compute(), model=model, data=data)
    return metrics, read_table(out / "rows.jsonl", WeakLabel)


def test_labels_are_the_model_s_probabilities_in_the_order_of_the_rows(tiny, tmp_path, model):
    metrics, rows = labels(tiny, tmp_path, model, tiny.test)
    table = tiny.table(tiny.test)
    assert [(row.id, row.text) for row in rows] == [(row["id"], row["text"]) for row in table]
    soft = classify(model, table, features=None, compute=tiny.compute()).softmax(-1)
    assert torch.allclose(torch.tensor([row.soft_label for row in rows]), soft, atol=1e-6)
    assert [row.hard_label for row in rows] == soft.argmax(-1).tolist()
    assert [row.weak_confidence for row in rows] == pytest.approx([max(row.soft_label) for row in rows])
    assert {row.weak_model for row in rows} == {model.name}
    assert metrics == {"rows": 40, "weak_confidence": pytest.approx(soft.amax(-1).mean().item())}


def test_no_truth_is_in_the_labels(tiny, tmp_path, model):
    labels(tiny, tmp_path, model, tiny.test)
    assert all("label" not in row for row in tiny.table(tmp_path))


def test_temperature_divides_the_logits(tiny, tmp_path, model):
    logits = classify(model, tiny.table(tiny.test), features=None, compute=tiny.compute())
    _, rows = labels(tiny, tmp_path, model, tiny.test, temperature=3.0)
    assert torch.allclose(torch.tensor([row.soft_label for row in rows]), (logits / 3).softmax(-1), atol=1e-6)
    _, plain = labels(tiny, tmp_path, model, tiny.test)
    assert [row.hard_label for row in plain] == [row.hard_label for row in rows]


def test_rows_that_the_model_was_trained_on_are_marked_and_held_out_ones_are_not(tiny, tmp_path, model):
    _, rows = labels(tiny, tmp_path, model, tiny.weak)
    trained_on = set((model / "trained_on.txt").read_text().splitlines())
    assert len(trained_on) == 48
    assert {row.id for row in rows if row.label_source == OWN_ROWS} == trained_on
    assert {row.label_source for row in rows} == {OWN_ROWS, "weak"}


def test_stored_states_give_the_same_labels(tiny, tmp_path):
    spec = tiny.spec(tune={"kind": "top", "layers": 2})
    model = tiny.trained(spec, features=tiny.states(spec, tiny.weak))
    _, text = labels(tiny, tmp_path, model, tiny.test)
    states = tiny.states(spec, tiny.test)
    label(LabelSpec(), tmp_path, compute=tiny.compute(), model=model, data=tiny.test, features=states)
    for left, right in zip(text, read_table(tmp_path / "rows.jsonl", WeakLabel), strict=True):
        assert left.soft_label == pytest.approx(right.soft_label, abs=1e-5)


def test_nothing_to_label_and_answers_that_are_no_numbers_are_refused(tiny, tmp_path):
    from trimtab.models.features import States, write_states

    spec = tiny.spec(tune={"kind": "probe"})
    model = tiny.trained(spec, features=tiny.states(spec, tiny.weak))
    with pytest.raises(DataError, match=f"no rows for {model.name} to classify"):
        classify(model, [], features=None, compute=tiny.compute())
    table = tiny.table(tiny.test)
    states = [s.clone() for s in States(tiny.states(spec, tiny.test)).rows([row["id"] for row in table])]
    states[3][:] = torch.nan
    write_states(tmp_path, [row["id"] for row in table], states)
    with pytest.raises(StageError, match=f"gives 1 rows logits that are not finite: {table[3]['id']}"):
        classify(model, table, features=tmp_path, compute=tiny.compute())

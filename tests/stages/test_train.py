"""Stage train: which rows and which labels it learns from."""

from __future__ import annotations

import json

import pytest

from trimtab.errors import DataError
from trimtab.stages.train import hold_out, train
from trimtab.training.curves import read_curves


def test_rows_held_out_are_the_same_for_one_seed_and_never_trained_on(tiny):
    table = tiny.table(tiny.weak)
    spec = tiny.spec(eval_fraction=0.25)
    kept, held = hold_out(table, spec)
    assert (len(kept), len(held)) == (48, 16)
    assert {row["id"] for row in kept} | {row["id"] for row in held} == {row["id"] for row in table}
    assert hold_out(table[::-1], spec) == (kept, held)
    assert hold_out(table, tiny.spec(eval_fraction=0.25, seed=1)) != (kept, held)
    assert hold_out(table, tiny.spec())[1] == []


def test_pairs_of_one_prompt_are_held_out_together(tiny):
    table = [{"id": f"{i}:{k}", "prompt_id": f"{i}"} for i in range(12) for k in range(1 + i % 3)]
    kept, held = hold_out(table, tiny.spec(eval_fraction=0.25))
    assert len({row["prompt_id"] for row in held}) == 3
    assert not {row["prompt_id"] for row in kept} & {row["prompt_id"] for row in held}
    assert len(kept) + len(held) == len(table)


def test_something_must_be_left_to_train_on(tiny):
    with pytest.raises(DataError, match=r"0 rows to train on"):
        hold_out([], tiny.spec())
    with pytest.raises(DataError, match=r"1 rows to train on, of which eval_fraction 0.9 leaves none"):
        hold_out([{"id": "a"}], tiny.spec(eval_fraction=0.9))


@pytest.mark.slow
class TestOnANetwork:
    def rows(self, folder, rows):
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    @pytest.mark.parametrize("tune", [{"kind": "full"}, {"kind": "probe"}], ids=["full", "probe"])
    def test_what_was_trained_on_is_written_down_and_the_rest_is_watched(self, tiny, tune):
        spec = tiny.spec(tune=tune, eval_fraction=0.25)
        inputs = {"features": self.all_states(tiny, spec)} if tune["kind"] == "probe" else {}
        out = tiny.trained(spec, oracle=tiny.test, **inputs)
        kept, _ = hold_out(tiny.table(tiny.weak), spec)
        assert (out / "trained_on.txt").read_text().splitlines() == [row["id"] for row in kept]
        assert {"eval_agreement", "eval_loss"} <= {name for _, values in read_curves(out) for name in values}
        assert json.loads((out / "metrics.json").read_text())["train/rows"] == 48

    def all_states(self, tiny, spec):
        rows = [*tiny.table(tiny.weak), *tiny.table(tiny.test)]
        folder = tiny.root / "all"
        return tiny.states(spec, folder if folder.is_dir() else self.rows(folder, rows))

    def test_truth_replaces_weak_labels_of_the_same_rows(self, tiny, tmp_path):
        weak = tiny.table(tiny.weak)
        truth = self.rows(tmp_path / "truth", [{"id": r["id"], "text": "", "label": 0} for r in weak[::-1]])
        out = tiny.trained(tiny.spec(learning_rate=0.01), data=tiny.weak, truth=truth)
        assert read_curves(out)[-1][1]["loss"] < 0.15  # the weak labels have an entropy of 0.5

    def test_truth_that_lacks_a_row_is_refused(self, tiny, tmp_path):
        truth = self.rows(tmp_path / "truth", [{"id": "other", "text": "", "label": 0}])
        with pytest.raises(DataError, match="has no label for 64 rows, r64 the first"):
            train(tiny.spec(), tmp_path, compute=tiny.compute(), data=tiny.weak, truth=truth)

    def test_oracle_rows_of_a_class_that_training_has_not_are_refused(self, tiny, tmp_path):
        oracle = self.rows(tmp_path / "oracle", [{"id": "x", "text": "warm", "label": 5}])
        with pytest.raises(DataError, match="row x: its label is none of the 2 classes"):
            train(tiny.spec(), tmp_path, compute=tiny.compute(), data=tiny.weak, oracle=oracle)

    def test_three_classes_from_hard_labels(self, tiny, tmp_path):
        rows = [row | {"label": i % 3} for i, row in enumerate(tiny.table(tiny.labelled))]
        out = tiny.trained(tiny.spec(eval_fraction=0.1), data=self.rows(tmp_path / "three", rows))
        assert json.loads((out / "model" / "config.json").read_text())["id2label"].keys() == {"0", "1", "2"}

    def test_a_probe_needs_states_and_names_rows_without(self, tiny, tmp_path):
        spec = tiny.spec(tune={"kind": "probe"})
        with pytest.raises(DataError, match="give the output of stage features"):
            train(spec, tmp_path, compute=tiny.compute(), data=tiny.weak)
        with pytest.raises(DataError, match="has no states of 64 rows, r"):
            train(spec, tmp_path, compute=tiny.compute(), data=tiny.weak, features=tiny.states(spec, tiny.test))

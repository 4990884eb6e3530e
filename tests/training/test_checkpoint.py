"""Checkpoints: how they are written, which can be used, which are kept; and that what is read is what was written."""

from __future__ import annotations

import inspect
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.training import checkpoint
from trimtab.training.checkpoint import Checkpoints, Stored, agreement, digest, flaw, listed, manifest_of
from trimtab.training.tally import Tally

BELONGS = {"spec": "a", "rows": "b"}


class State:
    """What transformers' TrainerState does here."""

    def save_to_json(self, path: str) -> None:
        Path(path).write_text("{}")


def kept_in(folder: Path, **compute) -> Checkpoints:
    (folder / "out").mkdir(exist_ok=True)
    return Checkpoints(folder / "partial", folder / "out", BELONGS, Compute(storage=folder, **compute))


def write(checkpoints: Checkpoints, step: int, **facts) -> Path:
    tensors = [("weight/a", torch.arange(6.0).view(2, 3) * step), ("trainer/row", torch.tensor([step]))]
    checkpoints.write(step, tensors, facts=facts, state=State())
    return checkpoints.folder / f"step-{step:08d}"


def names(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.step_of(folder) for folder in listed(checkpoints.folder)]


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write(kept_in(tmp_path), 3, updates=3, tally={"loss": (0.1, 7)})
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "tensors-00000.safetensors",
        "trainer_state.json",
    ]
    stored = Stored(folder)
    assert torch.equal(stored["weight/a"], torch.arange(6.0).view(2, 3) * 3)
    assert {name: value.tolist() for name, value in stored.under("trainer/").items()} == {"row": [3]}
    assert (stored.manifest["step"], stored.manifest["updates"], stored.manifest["tally"]["loss"]) == (3, 3, [0.1, 7])
    assert flaw(folder, BELONGS) is None


def test_large_states_are_cut_to_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20)
    folder = write(kept_in(tmp_path), 3)
    assert len(list(folder.glob("tensors-*"))) == 2
    assert Stored(folder)["weight/a"].shape == (2, 3)
    assert Stored(folder)["trainer/row"].item() == 3


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json, so it was never finished"),
        (lambda f: (f / "manifest.json").write_text("{"), "its manifest.json cannot be read"),
        (lambda f: (f / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda f: (f / "trainer_state.json").write_text("[]"), "trainer_state.json is not what was written"),
        (lambda f: (f / "tensors-00000.safetensors").write_bytes(b"x"), "is 1 bytes long, not .*: it was cut short"),
    ],
)
def test_damage_is_found_and_named(tmp_path, harm, said):
    folder = write(kept_in(tmp_path), 3)
    harm(folder)
    with pytest.raises(ResourceError, match=said):
        kept_in(tmp_path, resume=folder).start()


@pytest.mark.parametrize(("name", "said"), [("spec", "for another spec"), ("rows", "for other rows")])
def test_what_belongs_to_another_training_is_refused(tmp_path, name, said):
    folder = write(kept_in(tmp_path), 3)
    assert said in flaw(folder, BELONGS | {name: "other"})


@pytest.mark.chaos
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, capsys):
    checkpoints = kept_in(tmp_path, keep_latest=3)
    one, two, three = (write(checkpoints, step) for step in (1, 2, 3))
    (three / "manifest.json").unlink()
    (tmp_path / "partial" / ".step-00000004.abc").mkdir()
    assert checkpoints.start() == two
    said = capsys.readouterr().out
    assert f"checkpoint {three} is left aside: it has no manifest.json" in said
    assert f"going on from step 2: {two}" in said
    assert sorted((tmp_path / "partial").iterdir()) == [one, two]


@pytest.mark.chaos
def test_one_that_was_half_removed_stops_nothing(tmp_path):
    checkpoints = kept_in(tmp_path, keep_latest=2)
    one, two, three = (write(checkpoints, step) for step in (1, 2, 3))
    shutil.copytree(two, one)
    (two / "manifest.json").unlink()
    (one / "manifest.json").write_text("{")
    assert checkpoints.start() == three
    assert write(checkpoints, 4).exists()
    assert names(checkpoints) == [3, 4]


@pytest.mark.chaos
def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    checkpoints = kept_in(tmp_path, keep_latest=1)
    write(checkpoints, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    two = write(checkpoints, 2)
    monkeypatch.undo()
    assert names(checkpoints) == [2]
    assert len(list(checkpoints.folder.iterdir())) == 2
    assert checkpoints.start() == two
    assert list(checkpoints.folder.iterdir()) == [two]


def test_order_is_by_number(tmp_path):
    for name in ("step-100000000", "step-99999999", "step-00000007", "step-x", ".step-00000009.a", "other"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in listed(tmp_path)] == ["step-00000007", "step-99999999", "step-100000000"]


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = kept_in(tmp_path, keep_latest=2, keep_best=1)
    for step, score in enumerate((0.5, 0.9, 0.7, None, 0.9, 0.6, 0.6), start=1):
        write(checkpoints, step, eval_agreement=score)
    assert names(checkpoints) == [5, 6, 7]
    none = kept_in(tmp_path, keep_latest=1, keep_best=0)
    write(none, 8, eval_agreement=1.0)
    assert names(none) == [8]
    many = kept_in(tmp_path, keep_latest=1, keep_best=5)
    for step in (9, 10):
        write(many, step, eval_agreement=0.1)
    assert names(many) == [8, 9, 10]


def test_without_scores_only_the_latest_are_kept(tmp_path):
    checkpoints = kept_in(tmp_path)
    for step in range(1, 5):
        write(checkpoints, step, eval_agreement=None)
    assert names(checkpoints) == [3, 4]


def test_resume_says_whether_to_look(tmp_path):
    assert kept_in(tmp_path).start() is None
    with pytest.raises(ResourceError, match="compute.resume is required, but .* has no checkpoint to use; set it to"):
        kept_in(tmp_path, resume="required").start()
    one, two = write(kept_in(tmp_path), 1), write(kept_in(tmp_path), 2)
    assert kept_in(tmp_path, resume="required").start() == two
    assert kept_in(tmp_path, resume=one).start() == one
    assert not two.exists(), "later ones belong to a future that will not come"
    assert kept_in(tmp_path, resume="never").start() is None
    assert not one.exists()


def test_growing_files_of_the_output_stand_as_they_stood(tmp_path):
    checkpoints = kept_in(tmp_path)
    curves, skipped = tmp_path / "out" / "metrics.jsonl", tmp_path / "out" / "skipped.jsonl"
    curves.write_text("1\n")
    write(checkpoints, 1)
    curves.write_text("1\n2\n")
    skipped.write_text("later\n")
    checkpoints.start()
    assert curves.read_text() == "1\n"
    assert not skipped.exists()


def test_one_is_due_by_steps_or_else_by_time(tmp_path):
    by_steps = kept_in(tmp_path, checkpoint_steps=3)
    assert [step for step in range(1, 8) if by_steps.due(step)] == [3, 6]
    by_time = kept_in(tmp_path, checkpoint_minutes=60)
    assert not by_time.due(1)
    by_time.last -= 3601
    assert by_time.due(1)
    write(by_time, 1)
    assert not by_time.due(2)


def test_what_need_not_outlive_the_output_goes_with_it(tmp_path):
    inside = Checkpoints(tmp_path / "partial", tmp_path, BELONGS, Compute(storage=tmp_path))
    outside = Checkpoints(tmp_path / "partial", tmp_path / "out", BELONGS, Compute(storage=tmp_path))
    write(inside, 1)
    outside.end()
    assert inside.folder.exists()
    inside.end()
    assert not inside.folder.exists()


def test_the_last_agreement_counts():
    history = [{"eval_weak_agreement": 0.5}, {"loss": 1.0}, {"eval_weak_agreement": 0.75}, {"loss": 0.5}]
    assert agreement(history) == 0.75
    assert agreement([{"loss": 1.0}]) is None
    assert agreement([{"eval_weak_agreement": float("nan")}]) is None


def test_digests_tell_contents_apart():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_a_tally_weighs_what_it_adds():
    tally = Tally()
    tally.add("loss", 2.0, weight=3)
    tally.add("loss", 4.0)
    tally.add("share", 0.5)
    assert tally.of_all_ranks() == {"loss": (10.0, 4.0), "share": (0.5, 1.0)}


STAGES = [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16"), (2, "bfloat16")]


def trained(tiny, out: Path, dtype="float32", **compute):
    """The weights that stage train finds, and where its checkpoints are."""
    from trimtab.stages.train import train

    spec = tiny.spec(model={"source": str(tiny.model), "dtype": dtype})
    out.mkdir()
    partial = out.parent / "partial"
    train(spec, out, compute=tiny.compute(**compute), data=tiny.weak, partial=partial)
    return load_file(out / "model" / "model.safetensors"), partial


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """Trainings of eight steps with checkpoints at the third and the sixth, each stage and dtype once."""
    made = {}

    def get(stage, dtype):
        if (stage, dtype) not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            made[stage, dtype] = trained(tiny, folder / "a", dtype, zero_stage=stage, checkpoint_steps=3)
        return made[stage, dtype]

    return get


@pytest.mark.slow
class TestOnANetwork:
    train = staticmethod(trained)

    @pytest.mark.parametrize(("stage", "dtype"), STAGES)
    def test_every_zero_stage_goes_on_exactly(self, tiny, tmp_path, undisturbed, stage, dtype):
        whole, partial = undisturbed(stage, dtype)
        assert [folder.name for folder in listed(partial)] == ["step-00000003", "step-00000006"]
        shutil.copytree(partial / "step-00000003", tmp_path / "partial" / "step-00000003")
        resumed, _ = self.train(tiny, tmp_path / "b", dtype, zero_stage=stage, resume="required")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert (partial.parent / "a" / "metrics.jsonl").read_text() == (tmp_path / "b" / "metrics.jsonl").read_text()

    def test_a_checkpoint_is_whole_and_the_same_under_every_stage(self, undisturbed):
        stored = {stage: Stored(undisturbed(stage, "float32")[1] / "step-00000006") for stage in (0, 1, 2, 3)}
        model = undisturbed(0, "float32")[0]
        names = {f"{kind}/{name}" for name in model for kind in ("weight", "exp_avg", "exp_avg_sq")}
        for stage, found in stored.items():
            assert found.places.keys() == names
            assert (found.manifest["updates"], found.manifest["schedule"]) == (6, 6)
            for name in names:
                assert torch.allclose(found[name], stored[0][name], atol=2e-5), (stage, name)
            assert not [p for p in found.folder.iterdir() if p.suffix in (".pt", ".bin", ".pkl")]

    @pytest.mark.chaos
    def test_a_truncated_newest_checkpoint_falls_back_and_says_so(self, tiny, tmp_path, capfd):
        whole, partial = self.train(tiny, tmp_path / "a", checkpoint_steps=1)
        file = partial / "step-00000008" / "tensors-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        resumed, _ = self.train(tiny, tmp_path / "b")
        said = capfd.readouterr().out
        assert "step-00000008 is left aside: tensors-00000.safetensors is" in said and "it was cut short" in said
        assert "going on from step 7" in said
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_checkpoints_of_other_rows_or_another_spec_are_left_aside(self, tiny, tmp_path, capfd):
        from trimtab.stages.train import train

        _, partial = self.train(tiny, tmp_path / "a", checkpoint_steps=4)
        (tmp_path / "b").mkdir()
        spec, compute = tiny.spec(num_train_epochs=0.25), tiny.compute(resume=partial / "step-00000004")
        with pytest.raises(ResourceError, match="it was written for another spec"):
            train(spec, tmp_path / "b", compute=compute, data=tiny.weak)
        metrics = train(spec, tmp_path / "b", compute=tiny.compute(), data=tiny.labelled, partial=partial)
        assert "it was written for another spec" in capfd.readouterr().out
        assert metrics["train/steps"] == 1

    def test_none_is_written_by_a_short_training_and_none_is_left_in_the_output(self, tiny, tmp_path):
        _, partial = self.train(tiny, tmp_path / "a")
        assert not partial.exists()
        from trimtab.stages.train import train

        train(tiny.spec(), tmp_path, compute=tiny.compute(checkpoint_steps=2), data=tiny.weak)
        assert not partial.exists()

    def test_after_the_last_step_nothing_is_left_but_to_save(self, tiny, tmp_path):
        from trimtab.stages.train import train

        def run(name, **compute):
            (tmp_path / name).mkdir()
            places = {"data": tiny.weak, "partial": tmp_path / "partial"}
            return train(tiny.spec(num_train_epochs=1.5), tmp_path / name, compute=tiny.compute(**compute), **places)

        whole = run("a", checkpoint_steps=6)
        folder = tmp_path / "partial" / "step-00000006"
        (folder / "manifest.json").write_text(json.dumps(manifest_of(folder) | {"seconds": 1000.0}))
        began = time.monotonic()
        again = run("b", resume="required")
        assert again["train/steps"] == whole["train/steps"] == 6
        assert again["train/loss"] == whole["train/loss"]
        assert 1000 < again["train/seconds"] < 1000 + time.monotonic() - began, "time spent adds up"

    def test_a_mean_that_a_checkpoint_cuts_in_two_is_whole(self, tiny, tmp_path):
        """64 steps are logged every third: a checkpoint at the 32nd has two steps of a mean behind it."""
        from trimtab.stages.train import train

        def run(name, **compute):
            (tmp_path / name).mkdir()
            spec = tiny.spec(batch_size=2, objective={"kind": "logconf", "buffer": 8})
            places = {"data": tiny.weak, "partial": tmp_path / "partial"}
            metrics = train(spec, tmp_path / name, compute=tiny.compute(**compute), **places)
            return metrics["train/loss"], (tmp_path / name / "metrics.jsonl").read_text()

        whole = run("a", checkpoint_steps=32)
        shutil.rmtree(tmp_path / "partial" / "step-00000064")
        assert run("b", resume="required") == whole


@pytest.mark.slow
class TestWhatWeLeanOn:
    def test_the_trainer_resumes_the_way_we_expect(self):
        from transformers import Trainer
        from transformers.trainer import TRAINER_STATE_NAME

        assert TRAINER_STATE_NAME == checkpoint.STATE
        expected = {
            "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
            "_save_checkpoint": ["self", "model", "trial"],
            "training_step": ["self", "model", "inputs", "num_items_in_batch"],
            "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        }
        for name, parameters in expected.items():
            assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
        epochs, one = (inspect.getsource(f) for f in (Trainer._inner_training_loop, Trainer._run_epoch))
        assert "epoch=epoch," in epochs
        assert "skip_first_batches(train_dataloader, steps_trained_in_current_epoch)" in one
        after = inspect.getsource(Trainer._maybe_log_save_evaluate)
        assert after.index("self.log(") < after.index("self._evaluate(") < after.index("self._save_checkpoint(")
        start = inspect.getsource(Trainer._init_training_state)
        assert "self.state.global_step // num_update_steps_per_epoch" in start

    def test_deepspeed_s_states_are_where_we_look(self):
        import deepspeed
        from deepspeed.runtime import engine
        from deepspeed.runtime.fp16 import unfused_optimizer
        from deepspeed.runtime.zero import stage3, stage_1_and_2

        for what in ("get_full_fp32_param", "get_full_optimizer_state", "set_full_fp32_param", "set_local_fp32_param"):
            assert hasattr(deepspeed.utils, f"safe_{what}")
        assert "self.basic_optimizer = basic_optimizer" in inspect.getsource(engine)
        assert "self._hp_optimizer_states_linked = False" in inspect.getsource(stage_1_and_2)
        assert hasattr(stage_1_and_2.DeepSpeedZeroOptimizer, "_lazy_init_hp_params_optimizer_state")
        assert "self.fp32_partitioned_groups_flat = []" in inspect.getsource(stage3)
        assert "self.fp32_groups.append(" in inspect.getsource(unfused_optimizer)

"""Memory and disk of a plan, and whether a machine has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.parts import FeatureSpec, LoRA, ModelSpec, Probe, TaskSpec, Top, TrainSpec
from trimtab.run.artifact import Artifact, Node, PlanRunner
from trimtab.run.estimate import PROCESS, Need, free_here, gib, need, preflight, size_of, text_of, total, whole_size
from trimtab.stages.features import features
from trimtab.stages.prepare import prepare
from trimtab.stages.train import train

MIB = 2**20


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder as a model of 8 layers and 96 million weights leaves it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 8}))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(192_000_000)
    return str(folder)


def node(stage: object, spec: object) -> Node:
    return Node(stage, spec, {}, Artifact(stage.__name__, "0" * 16, Path("artifacts")), "")


def test_sizes_before_and_after_a_cut(model: str) -> None:
    assert whole_size(ModelSpec(source=model)).weights == 96_000_000
    assert whole_size(ModelSpec(source=model)).width == 1000
    assert size_of(ModelSpec(source=model, layers=2)).weights == 24_000_000
    assert size_of(ModelSpec(source=model, layers=(0, 7, 3))).layers == 3
    assert size_of(ModelSpec(source="builtin:smollm2-135m")).weights == 134_515_008
    assert size_of(ModelSpec(source="someone/something")) is None


@pytest.mark.parametrize("config", ["{", "{}", "[]", '{"num_hidden_layers": 0}', '{"num_hidden_layers": "x"}'])
def test_a_config_that_does_not_tell(model: str, config: str) -> None:
    (Path(model) / "config.json").write_text(config)
    assert size_of(ModelSpec(source=model)) is None


def test_memory_and_disk_of_training(model: str) -> None:
    spec = TrainSpec(model=model)
    assert need(node(train, spec)) == Need(PROCESS + 96_000_000 * 18, MIB + 192_000_000)
    top = spec.model_copy(update={"tune": Top(layers=2)})
    assert need(node(train, top)).memory == PROCESS + 96_000_000 * 6
    lora = spec.model_copy(update={"tune": LoRA()})
    assert need(node(train, lora)).memory == PROCESS + int(96_000_000 * 2.32)
    probe = spec.model_copy(update={"tune": Probe()})
    assert need(node(train, probe)) == Need(PROCESS, MIB)
    assert need(node(train, TrainSpec(model="someone/something"))) == Need(None, None)


def test_states_of_every_token_take_disk(model: str) -> None:
    pooled = need(node(features, FeatureSpec(model=ModelSpec(source=model))), 4_000_000)
    tokens = need(node(features, FeatureSpec(model=ModelSpec(source=model), keep="tokens")), 4_000_000)
    assert tokens.disk == MIB + 1_000_000 * 1000 * 2
    assert tokens.disk > 9 * pooled.disk
    assert tokens.memory == PROCESS + 192_000_000


def test_bytes_of_a_task(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("x" * 300)
    assert text_of([node(prepare, TaskSpec(source=str(rows)))]) == 300
    assert text_of([node(prepare, TaskSpec(source=str(rows), test=str(rows)))]) == 600
    assert text_of([node(prepare, TaskSpec(source="someone/something"))]) is None


def test_what_runs_side_by_side_adds_up(model: str, tmp_path: Path) -> None:
    nodes = [node(train, TrainSpec(model=ModelSpec(source=model, layers=k))) for k in (2, 4, 8)]
    one, two, three = (need(n).memory for n in nodes)
    inline, ray = Compute(backend="inline"), Compute(backend="ray")
    assert total(nodes, nodes, inline, cpus=8).memory == three
    assert total(nodes, nodes, ray, cpus=2).memory == two + three
    assert total(nodes, nodes, ray, cpus=8).memory == one + two + three
    assert total(nodes, nodes, ray.model_copy(update={"groups": 1}), cpus=8).memory == three
    assert total(nodes, nodes, ray.model_copy(update={"workers": 2}), cpus=2).memory == 2 * three
    assert total(nodes, nodes, inline, cpus=1).disk == sum(need(n).disk for n in nodes)
    assert total(nodes, [], inline, cpus=1) == Need(0, 0)
    unknown = node(train, TrainSpec(model="someone/something"))
    assert total(nodes, [*nodes, unknown], inline, cpus=1) == Need(None, None)


def test_too_little_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    compute = Compute(storage=tmp_path / "storage")
    with pytest.raises(
        ResourceError, match=r"too little memory: the plan needs about 2\.0 GiB, there is 1\.0 GiB; low"
    ):
        preflight(Need(2**31, 0), compute, free=Need(2**30, 2**40))
    with pytest.raises(ResourceError, match=r"too little disk: .* 10 MiB, there is 5 MiB; make room, set compute\.sto"):
        preflight(Need(0, 10 * MIB), compute, free=Need(2**40, 5 * MIB))
    assert not compute.storage.exists()


def test_enough_makes_the_storage(tmp_path: Path) -> None:
    compute = Compute(storage=tmp_path / "deep" / "storage")
    preflight(Need(2**30, 2**30), compute, free=Need(2**30, 2**30))
    assert compute.artifacts.is_dir()
    preflight(Need(None, None), compute, free=Need(0, 0))
    preflight(Need(2**40, 0), compute, free=Need(None, 2**40))


def test_a_storage_that_cannot_be_made() -> None:
    with pytest.raises(
        ResourceError, match=r"storage /proc/nowhere cannot be made .*; set compute.storage or TRIMTAB_"
    ):
        preflight(Need(0, 0), Compute(storage="/proc/nowhere"), free=Need(1, 1))


def test_what_this_machine_has(tmp_path: Path) -> None:
    here = free_here(Compute(backend="inline", storage=tmp_path / "not" / "yet"))
    assert here.memory > 0
    assert here.disk > 0
    assert free_here(Compute(address="ray://elsewhere:10001", storage=tmp_path)).memory is None


def test_bytes_in_words() -> None:
    assert [gib(5 * MIB), gib(3 * 2**29), gib(None)] == ["5 MiB", "1.5 GiB", "unknown until downloaded"]


def test_a_node_of_a_plan_has_a_need(tmp_path: Path) -> None:
    runner = PlanRunner(Compute(storage=tmp_path))
    runner(prepare, TaskSpec(source="builtin:valence"))
    assert need(next(iter(runner.nodes.values()))).memory < PROCESS

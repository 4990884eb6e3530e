"""What a stage that resumes has so far, in a remote storage: another node goes on from what was whole."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Tiny
from tests.run import faulty  # noqa: F401
from tests.run.test_remote import chain

from trimtab.compute import Compute
from trimtab.run import carrying
from trimtab.run.artifact import Artifact
from trimtab.run.carrying import Partial
from trimtab.run.local import LocalRunner
from trimtab.run.store import store_of
from trimtab.stages.train import train
from trimtab.training.world import World

LONG = 120.0


def until(there: Any) -> None:
    end = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_MIRROR", "unset")
    monkeypatch.setattr(carrying, "EVERY_S", 0.1)
    return tmp_path / "store"


def on(node: Path, store: Path) -> Partial:
    """The same stage on a node of its own."""
    return Partial(Artifact("train", "k" * 16, node / "artifacts", remote=store.as_uri().replace("file", "faulty", 1)))


def checkpoint(folder: Path, step: int, text: str = "weights") -> Path:
    place = folder / f".step-{step:08d}"
    place.mkdir(parents=True)
    (place / "tensors").write_text(text)
    written = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (place / "manifest.json").write_text(json.dumps({"step": step, "belongs": {}, "files": {"tensors": written}}))
    return place.rename(folder / f"step-{step:08d}")


@contextmanager
def carried(partial: Partial, **fields: Any) -> Any:
    with partial.carried(World(0, 1), **({"fresh": False} | fields)):
        yield partial.folder


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_becomes_whole_is_pushed_and_found_on_another_node(store: Path, tmp_path: Path) -> None:
    there = store / "partial" / ("train-" + "k" * 16)
    with carried(on(tmp_path / "a", store)) as folder:
        (folder / ".step-00000009").mkdir()
        (folder / ".batch.jsonl").write_text("half")
        (folder / "batch.jsonl").write_text("whole")
        checkpoint(folder, 4)
        until((there / "step-00000004" / "manifest.json").exists)
        checkpoint(folder, 8, "newer")
        until((there / "step-00000008" / "manifest.json").exists)
    assert not [name for name in names(there) if name.startswith(".")]
    with carried(on(tmp_path / "b", store)) as folder:
        assert names(folder) == ["batch.jsonl", "step-00000008/manifest.json", "step-00000008/tensors"]
        assert (folder / "step-00000008" / "tensors").read_text() == "newer"
    with carried(on(tmp_path / "c", store), fresh=True) as folder:
        assert names(folder) == []


@pytest.mark.chaos
def test_a_checkpoint_that_is_cut_short_or_damaged_gives_way_to_the_one_before(store: Path, tmp_path: Path) -> None:
    one = on(tmp_path / "a", store)
    for step in (4, 8, 12):
        checkpoint(one.folder, step)
    one.push()
    there = store / "partial" / ("train-" + "k" * 16)
    (there / "step-00000012" / "manifest.json").unlink()
    (there / "step-00000008" / "tensors").write_text("Weights")
    with carried(on(tmp_path / "b", store)) as folder:
        assert [p.name for p in folder.iterdir()] == ["step-00000004"]


def test_what_is_let_go_of_here_goes_there_and_what_others_pushed_stays(store: Path, tmp_path: Path) -> None:
    other, one = on(tmp_path / "other", store), on(tmp_path / "a", store)
    checkpoint(other.folder, 2)
    other.push()
    old = checkpoint(one.folder, 4)
    one.push()
    (old / "tensors").unlink()
    (old / "manifest.json").unlink()
    old.rmdir()
    checkpoint(one.folder, 8)
    one.push()
    there = store / "partial" / ("train-" + "k" * 16)
    assert [p.name for p in sorted(there.iterdir()) if names(p)] == ["step-00000002", "step-00000008"]


@pytest.mark.chaos
def test_a_storage_that_is_down_for_a_while_costs_nothing(store: Path, tmp_path: Path) -> None:
    there = store / "partial" / ("train-" + "k" * 16)
    with carried(on(tmp_path / "a", store)) as folder:
        (store / "DOWN").parent.mkdir(parents=True, exist_ok=True)
        (store / "DOWN").touch()
        checkpoint(folder, 4)
        time.sleep(0.5)
        assert not there.exists()
        (store / "DOWN").unlink()
        until((there / "step-00000004" / "manifest.json").exists)


def test_of_several_processes_of_a_node_one_pushes(store: Path, tmp_path: Path) -> None:
    """Two that begin together, as ranks do; the one that is left goes on when the other ends."""
    partials = [on(tmp_path / "a", store) for _ in range(2)]
    go, begun = [threading.Event() for _ in partials], threading.Barrier(3, timeout=LONG)

    def rank(number: int) -> None:
        with carried(partials[number]):
            begun.wait()
            go[number].wait(LONG)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in ranks:
        thread.start()
    begun.wait()
    checkpoint(partials[0].folder, 4)
    until(lambda: any(partial.pushed for partial in partials))
    first = 0 if partials[0].pushed else 1
    assert not partials[1 - first].pushed
    go[first].set()
    ranks[first].join(LONG)
    checkpoint(partials[0].folder, 8)
    until(lambda: "step-00000008" in partials[1 - first].pushed)
    go[1 - first].set()
    ranks[1 - first].join(LONG)


def test_all_nodes_of_a_stage_begin_with_what_one_of_them_has_left(store: Path, tmp_path: Path) -> None:
    """It was written where a rank died before it was pushed."""
    meet = threading.Barrier(2, timeout=LONG)

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            meet.wait()
            return [value, value]

    nodes = [on(tmp_path / name, store) for name in "ab"]
    for partial, step in zip(nodes, (8, 4), strict=True):
        checkpoint(partial.folder, step)
    found: list[list[str]] = [[], []]

    def rank(number: int) -> None:
        with nodes[number].carried(Two(number, 2), fresh=False):
            found[number] = sorted(p.name for p in nodes[number].folder.iterdir())
            meet.wait()

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(LONG)
    assert found == [["step-00000008"], ["step-00000004", "step-00000008"]]


def _trains(spec: Any, rows: Path, url: str, mirror: Path, kill: bool) -> None:
    """A training of eight steps, a checkpoint every two; killed after the sixth, when the fourth is elsewhere."""
    os.environ["TRIMTAB_MIRROR"] = str(mirror)
    compute = Compute(backend="inline", storage=url, checkpoint_steps=2)
    store, events = store_of(url), []

    def sink(event: dict[str, Any]) -> None:
        events.append(event)
        if kill and event["event"] == "metrics" and event["step"] >= 6:
            under = f"partial/{event['stage_id']}"
            until(lambda: "step-00000004/manifest.json" in store.sizes(under))
            os._exit(9)

    run = LocalRunner(compute, sink=sink)
    data = Artifact("rows", "0" * 16, rows.parent.parent, part="weak")
    made = run(train, spec, data=data)
    run.wait()
    (mirror / "said.json").write_text(json.dumps({"folder": str(made.folder), "events": events}, default=str))


@pytest.mark.slow
@pytest.mark.chaos
def test_a_training_whose_node_is_lost_goes_on_in_an_empty_mirror(store: Path, tmp_path: Path, tiny: Tiny) -> None:
    from safetensors.torch import load_file
    from tests import forking

    given = tmp_path / "given" / ("rows-" + "0" * 16)
    given.mkdir(parents=True)
    (given / "metrics.json").write_text("{}")
    (given / "weak").symlink_to(tiny.weak)
    spec, left = tiny.spec(), {}
    for name, url, kill in (("whole", tmp_path / "alone", False), ("lost", store, True), ("after", store, False)):
        process = forking.start(_trains, spec, given / "weak", url.as_uri(), tmp_path / name, kill)
        process.join(400)
        assert process.exitcode == (9 if kill else 0)
        if not kill:
            left[name] = json.loads((tmp_path / name / "said.json").read_text())
    notes = [event["text"] for event in left["after"]["events"] if event["event"] == "note"]
    assert any(note.startswith("going on from step") and str(tmp_path / "after") in note for note in notes)
    whole, after = (
        load_file(Path(left[name]["folder"]) / "model" / "model.safetensors") for name in ("whole", "after")
    )
    assert all((whole[name] == after[name]).all() for name in whole)
    assert names(store / "partial") == [], "what is made needs no checkpoints"


def test_a_stage_that_does_not_resume_leaves_nothing_on_the_way(store: Path, tmp_path: Path) -> None:
    run = chain(store.as_uri(), tmp_path / "a", length=1)
    run.wait()
    assert sorted(p.name for p in store.iterdir()) == ["artifacts"]

"""One stage on nodes that share no files but a remote storage: what each of them makes is found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests import forking
from tests.conftest import Tiny

from trimtab.compute import Compute
from trimtab.models.features import States
from trimtab.parts import FeatureSpec
from trimtab.progress import Noting
from trimtab.run.artifact import Artifact, Node
from trimtab.run.carrying import AWAY, Carrier
from trimtab.run.local import LocalRunner, execute
from trimtab.run.remote import fetched
from trimtab.run_log import log_of, logged_to
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, Stage, stage
from trimtab.stages.features import features
from trimtab.training.world import world


class Plain(Spec):
    text: str = "a b c"


@stage(version=1, on="workers")
def shares(spec: Plain, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """Each rank writes a file of its own; the first one another."""
    ranks = world()
    (out / "shares").mkdir(exist_ok=True)
    (out / "shares" / str(ranks.rank)).write_text(spec.text * ranks.rank)
    if ranks.first:
        (out / "whole").write_text((rows / "rows.jsonl").read_text())
    print(f"rank {ranks.rank} on {compute.storage.parent.name}")
    return {"ranks": ranks.size}


def planned(mirror: Path, stage: Stage, spec: Spec, rows: Path) -> tuple[LocalRunner, Node]:
    """The stage as a node with this mirror sees it."""
    os.environ["TRIMTAB_MIRROR"] = str(mirror)
    run = LocalRunner(Compute(backend="inline", storage=(mirror.parent / "store").as_uri()))
    given = run.compute.artifacts / ("rows-" + "0" * 16)
    given.mkdir(parents=True, exist_ok=True)
    (given / "metrics.json").write_text("{}")
    if not (given / "data").exists():
        (given / "data").symlink_to(rows)
    run(stage, spec, rows=Artifact("rows", "0" * 16, given.parent, part="data"))
    return run, next(iter(run.nodes.values()))


def on_a_rank(plan: tuple[Any, ...], out: str, mirror: Path, rank: int, size: int) -> None:
    """What a worker of a group does with a stage, on a node with this mirror."""
    run, node = planned(mirror, *plan)
    dist.init_process_group("gloo", init_method=f"file://{mirror.parent / out}.meet", rank=rank, world_size=size)
    carrier = Carrier.of(node, run.compute)
    place = carrier.place(node.artifact.root / out)
    (place / f"torn by {rank}").write_text("of an earlier attempt")
    (place / "rank7.log.txt").write_text("an earlier attempt's")
    dist.barrier()
    with logged_to(place / log_of(rank)), carrier.around(place, world()):
        metrics = node.stage(node.spec, place, compute=run.compute, **node.arguments())
    if rank == 0:
        (mirror.parent / f"{out}.said").write_text(json.dumps(metrics))


def grouped(mirrors: Sequence[Path], plan: tuple[Any, ...], node: Node, out: Path) -> Metrics:
    """A group of workers, one on each of these nodes; what the first returns."""
    ranks = [
        forking.start(on_a_rank, plan, out.name, mirror, rank, len(mirrors)) for rank, mirror in enumerate(mirrors)
    ]
    for rank in ranks:
        rank.join(400)
    assert [rank.exitcode for rank in ranks] == [0] * len(ranks)
    return json.loads((mirrors[0].parent / f"{out.name}.said").read_text())


def made(root: Path, nodes: str, *plan: Any) -> Path:
    """The output of a stage whose ranks ran on these nodes, as found on one more; the driver's is d."""
    run, node = planned(root / "d", *plan)
    execute(node, partial(grouped, [root / name for name in nodes], plan), Noting(run.sink))
    assert not list(root.glob(f"?/*/artifacts/*{AWAY}"))
    _, there = planned(root / "other", *plan)
    assert not there.artifact.here
    return fetched(there.artifact)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_MIRROR", "unset")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text("{}\n")
    return tmp_path / "rows"


@pytest.mark.parametrize("nodes", ["da", "ad", "ab", "aab", "aba", "dd", "a"])
def test_what_every_node_made_stands_in_the_storage(tmp_path: Path, rows: Path, nodes: str) -> None:
    folder = made(tmp_path, nodes, shares, Plain(), rows)
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert [found.pop(name) for name in ("metrics.json", "stage.json")]
    if set(nodes) == {"d"}:
        found.pop("rank7.log.txt")
    logs = {log_of(rank): f"rank {rank} on {name}\n" for rank, name in enumerate(nodes)}
    assert found == {"whole": "{}\n"} | {f"shares/{rank}": "a b c" * rank for rank in range(len(nodes))} | logs


@pytest.mark.slow
def test_states_that_two_nodes_computed_are_found_by_every_row(tmp_path: Path, rows: Path, tiny: Tiny) -> None:
    folder = made(tmp_path, "da", features, FeatureSpec(model=tiny.spec().model), tiny.test)
    assert States(folder).matrix([row["id"] for row in tiny.table(tiny.test)]).shape == (40, 32)

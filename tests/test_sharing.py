"""What the users of a group may share: files have the modes that the umask allows, whoever wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import Tiny
from tests.search.test_study import SPACE
from tests.searched import search_over
from tests.test_resume import job_file
from tests.training.test_checkpoint import kept_in, write

from trimtab import verbs
from trimtab.models.shards import write_shard
from trimtab.run.artifact import Artifact, building, finish
from trimtab.run.naming import alone
from trimtab.run.track_words import connect
from trimtab.search.study import opened
from trimtab.sharing import shared


@pytest.fixture(autouse=True, params=[0o002, 0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Of files and folders, but for those that are as the umask says."""
    umask = os.umask(0)
    os.umask(umask)
    found = {path: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    usual = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    return {str(path.relative_to(folder)): oct(mode) for path, mode in found.items() if mode != usual[path.is_dir()]}


def test_a_library_that_writes_for_its_owner_alone_has_no_say(tmp_path: Path) -> None:
    artifact = Artifact("train", "0123", tmp_path / "artifacts")
    with building(artifact) as aside:
        (aside / "model").mkdir()
        save_file({"a": torch.zeros(2)}, aside / "model" / "model.safetensors")
        finish(artifact, aside, record={}, metrics={})
    write(kept_in(tmp_path), 3)
    write_shard(tmp_path / "cache", {"a": torch.zeros(2)}, {})
    with alone(tmp_path / "runs" / "one"):
        pass
    opened(search_over(SPACE, tmp_path))
    assert modes(tmp_path) == {}


def test_a_file_that_has_further_names_stays_as_it_is(tmp_path: Path) -> None:
    (own := tmp_path / "own").touch(0o600)
    (tmp_path / "linked").hardlink_to(own)
    (tmp_path / "symbolic").symlink_to(own)
    shared(*tmp_path.iterdir())
    assert own.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002], indirect=True)
def test_what_a_run_leaves_is_its_group_s_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("trimtab.tracked.CLOSES_WITHIN_S", 300.0)
    storage = tmp_path / "storage"
    verbs.run(job_file(tmp_path, tiny), [f"compute.storage={storage}", "compute.backend=inline"])
    assert connect(f"sqlite:///{storage}/mlflow.db").search_experiments()
    assert modes(storage) == {}

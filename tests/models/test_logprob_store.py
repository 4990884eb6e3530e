"""The store of log-probs: found again, by many writers, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trimtab.models.logprob_store import Store, key
from trimtab.models.shards import shards

WRITER = """
import sys
from pathlib import Path
from trimtab.models.logprob_store import Store, key
store, name, files = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for i in range(files):
    store.put({key(name, [i], [j, j]): [-float(i), -float(j)] for j in range(20)})
"""


def writer(folder: Path, name: str, files: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(files)])


def found(folder: Path, name: str, files: int) -> dict:
    """Of the keys that a writer puts there, those found with the values it gave them."""
    keys = {key(name, [i], [j, j]): torch.tensor([-float(i), -float(j)]) for i in range(files) for j in range(20)}
    got = Store(folder).get(keys)
    assert all(torch.equal(value, keys[k]) for k, value in got.items())
    return got


def test_what_was_put_is_found_by_others_and_nothing_else_is(tmp_path):
    mine, other = Store(tmp_path / "a" / "b"), Store(tmp_path / "a" / "b")
    assert mine.get(["00" * 16]) == {}
    put = {key("m", [1, 2], [3]): [-0.5], key("m", [1], [2, 3]): [-1.25, -1e-7]}
    mine.put(put)
    got = other.get([*put, key("m", [1, 2, 3], [])])
    assert {k: value.tolist() for k, value in got.items()} == {
        k: torch.tensor(values).tolist() for k, values in put.items()
    }
    other.put({key("m", [9], [9]): [-3.0]})
    assert mine.get([key("m", [9], [9])])[key("m", [9], [9])].dtype == torch.float32
    mine.put({})
    assert len(shards(tmp_path / "a" / "b")) == 2


def test_a_pair_turned_round_is_found_and_another_model_is_not(tmp_path):
    store, prompt, chosen, rejected = Store(tmp_path), [5, 6], [7, 8], [9]
    store.put({key("bf16", prompt, ids): [-1.0] * len(ids) for ids in (chosen, rejected)})
    turned = [key("bf16", prompt, ids) for ids in (rejected, chosen)]
    assert [len(store.get(turned)[k]) for k in turned] == [1, 2]
    assert store.get([key("fp32", prompt, chosen), key("bf16", [5], [6, 7, 8]), key("bf16", prompt, [7])]) == {}


def test_damaged_and_half_written_files_are_left_out(tmp_path):
    store = Store(tmp_path)
    keys = [key("m", [i], [i]) for i in range(3)]
    for k in keys:
        store.put({k: [-1.0]})
    first, second, _ = shards(tmp_path)
    first.write_bytes(first.read_bytes()[:-3])
    second.write_bytes(b"")
    (tmp_path / ".half.safetensors").write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match="cannot be read and counts as not there") as warned:
        got = Store(tmp_path).get(keys)
    assert len(warned) == 2
    assert len(got) == 1


def test_a_file_that_does_not_fit_together_is_left_out(tmp_path):
    from safetensors.torch import save_file

    tensors = {"keys": torch.zeros(1, 16, dtype=torch.uint8), "lengths": torch.tensor([3]), "logprobs": torch.zeros(2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.warns(RuntimeWarning, match="does not fit together"):
        assert Store(tmp_path).get(["00" * 16]) == {}


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path):
    both = [writer(tmp_path, name, 30) for name in ("one", "two")]
    assert [process.wait(timeout=400) for process in both] == [0, 0]
    assert [len(found(tmp_path, name, 30)) for name in ("one", "two")] == [600, 600]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    process = writer(tmp_path, "killed", 100_000)
    while len(shards(tmp_path)) < 50:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    files = len(shards(tmp_path))
    assert len(found(tmp_path, "killed", files)) == 20 * files

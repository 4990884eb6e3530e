"""Stage debate on a tiny network: the same transcripts however often it is killed; and the stages that read them."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys

import pytest
from tests.conftest import GOOD, PLAIN, write_rows

from trimtab.debating import DebateSpec, JudgeSpec
from trimtab.errors import DataError
from trimtab.stages.debate import debate
from trimtab.stages.judge import judge
from trimtab.stages.pairs import read_scores

pytestmark = pytest.mark.slow

TEXTS = {
    "case": "{question} {first} {second} {transcript}",
    "turn": "{text} ",
    "judge": "{question} {first} {second} {transcript}",
    "judge_reply": "",
    **dict.fromkeys(("debate_opening", "debate_reply", "debate_start"), "{own}"),
}
RUN = """
import os, sys
from pathlib import Path
from trimtab.compute import Compute
from trimtab.debating import DebateSpec
from trimtab.stages.debate import debate
spec, storage, rows, out, partial = sys.argv[1:]
module = sys.modules["trimtab.stages.debate"]
keep = module._keep
def kept(partial, table):
    keep(partial, table)
    if len(list(partial.glob("[!.]*.jsonl"))) == 3:
        os.kill(os.getpid(), 9)
module._keep = kept
debate(DebateSpec.model_validate_json(spec), Path(out), rows=Path(rows), partial=Path(partial),
       compute=Compute(backend="inline", storage=storage, inference_batch=4))
"""


@pytest.fixture(scope="module")
def rows(tiny):
    """40 questions of a few words, with two answers of one."""
    draw = random.Random(0)
    common = {"group": None, "part": "train"}
    return write_rows(
        tiny.root / "cases",
        [
            {
                "id": f"c{i}",
                "prompt": " ".join(draw.choices(PLAIN, k=draw.randint(1, 6))),
                "candidates": [{"text": text, "ended": True} for text in draw.sample(GOOD, 2)],
                **common,
            }
            for i in range(40)
        ],
    )


@pytest.fixture(scope="module")
def spec(tiny):
    prompts = tiny.root / "prompts.toml"
    texts = "\n".join(f"{name} = {json.dumps(text)}" for name, text in TEXTS.items())
    prompts.write_text(texts + '\njudge_labels = ["bread", "cup"]\n')
    protocol = {"kind": "sequential", "turns": 2, "words": 4, "prompts": str(prompts)}
    return DebateSpec.model_validate({"model": {"source": str(tiny.model), "dtype": "float32"}, "protocol": protocol})


def made(tiny, spec, rows, out, *, partial=None, batch=4):
    out.mkdir()
    compute = tiny.compute(inference_batch=batch)
    return debate(spec, out, compute=compute, rows=rows, partial=partial or out / "partial")


@pytest.fixture(scope="module")
def whole(tiny, spec, rows, tmp_path_factory):
    """Transcripts of an attempt that nothing disturbed, and its metrics."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, made(tiny, spec, rows, out)


def text(folder) -> str:
    return (folder / "rows.jsonl").read_text()


def words(table) -> list[list[str]]:
    return [[turn["text"] for turn in row["turns"]] for row in table]


def test_every_case_has_its_turns_and_what_they_cost(tiny, rows, whole):
    out, metrics = whole
    table = tiny.table(out)
    assert [row["id"] for row in table] == [row["id"] for row in tiny.table(rows)]
    turns = [turn for row in table for turn in row["turns"]]
    assert [turn["speaker"] for turn in turns] == [0, 1, 0, 1] * 40
    assert all(turn["logprob"] < 0 < turn["tokens"] <= 6 for turn in turns)
    assert metrics["tokens"] == sum(turn["tokens"] for turn in turns)
    assert metrics["tokens_read"] < metrics["prompt_tokens"] + metrics["tokens"]
    assert (metrics["rows"], metrics["turns"], metrics["resumed"]) == (40, 160, 0)
    assert 10 < sum(row["order"] == [1, 0] for row in table) < 30
    for row in table:
        for turn in row["turns"]:
            assert turn["text"].startswith(row["answers"][row["order"][turn["speaker"]]])


@pytest.mark.chaos
def test_a_killed_attempt_is_continued_and_comes_to_the_same_transcripts(tiny, spec, rows, whole, tmp_path):
    out, partial = tmp_path / "killed", tmp_path / "partial"
    out.mkdir()
    arguments = [spec.model_dump_json(), tiny.root / "storage", rows, out, partial]
    process = subprocess.Popen([sys.executable, "-c", RUN, *map(str, arguments)])
    assert process.wait() == -signal.SIGKILL
    assert not (out / "rows.jsonl").exists()
    assert len(list(partial.glob("[!.]*.jsonl"))) == 3
    metrics = made(tiny, spec, rows, tmp_path / "out", partial=partial)
    assert metrics["resumed"] == 4 * 3
    assert text(tmp_path / "out") == text(whole[0])


def test_the_size_of_a_batch_changes_nothing_and_another_seed_everything(tiny, spec, rows, whole, tmp_path):
    made(tiny, spec, rows, tmp_path / "out", batch=64)
    assert words(tiny.table(tmp_path / "out")) == words(tiny.table(whole[0]))
    made(tiny, spec.model_copy(update={"seed": 1}), rows, tmp_path / "seed", batch=64)
    other = words(tiny.table(tmp_path / "seed"))
    assert sum(a == b for a, b in zip(other, words(tiny.table(whole[0])), strict=True)) < 4


def test_a_judge_reads_both_orders_and_its_word_is_a_preference(tiny, spec, rows, whole, tmp_path):
    asked = JudgeSpec(model=spec.model, prompts=spec.protocol.prompts)
    metrics = judge(asked, tmp_path, compute=tiny.compute(), rows=rows, transcripts=whole[0])
    table, scores = tiny.table(tmp_path), read_scores(tmp_path)
    for row in table:
        p = (row["given"] + 1 - row["swapped"]) / 2
        assert scores[row["id"]] == pytest.approx([math.log(p), math.log(1 - p)], abs=1e-5)
    assert metrics["position_bias"] == pytest.approx(sum(r["given"] + r["swapped"] - 1 for r in table) / 40, abs=1e-6)
    none = write_rows(tmp_path / "none", tiny.table(whole[0])[1:])
    with pytest.raises(DataError, match="no transcript for case c0"):
        judge(asked, tmp_path, compute=tiny.compute(), rows=rows, transcripts=none)

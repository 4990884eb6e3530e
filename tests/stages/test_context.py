"""What classifiers read of an answer, and what several judges make: stages context, verdicts, panel, jury, grade."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from tests.conftest import write_rows
from tests.debating import hold
from tests.models.test_debating import quoting, world

from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.data.transcripts import read_transcripts, transcript_row
from trimtab.debating import ContextSpec, PanelSpec
from trimtab.errors import DataError
from trimtab.methods.debates.sequential import Sequential
from trimtab.parts import EvalSpec, LabelSpec
from trimtab.stages.context import context
from trimtab.stages.judge import verdicts
from trimtab.stages.pairs import read_scores, write_scores
from trimtab.stages.panel import grade, jury, panel

COMPUTE = Compute(backend="inline")


@pytest.fixture(scope="module")
def debated(tmp_path_factory) -> tuple[Path, Path]:
    """Twenty cases about who came, and a debate of each in which the truth alone can be quoted."""
    root, cases = tmp_path_factory.mktemp("debated"), world(20)
    common = {"part": "train", "candidates": []}
    rows = [
        {"id": case.id, "prompt": case.question, "group": f"g{i // 2}"}
        | common
        | {"candidates": [{"text": answer, "ended": True} for answer in case.answers]}
        for i, (case, _) in enumerate(cases)
    ]
    write_rows(root / "cases", rows)
    write_scores(root / "cases", {case.id: [float(truth == k) for k in (0, 1)] for case, truth in cases})
    held = hold(Sequential(turns=1), [case for case, _ in cases], quoting)
    write_rows(root / "debate", [transcript_row(one.transcript, one.costs) for one in held])
    return root / "cases", root / "debate"


def contexts(debated, out, how):
    (out / how).mkdir()
    rows, transcripts = debated
    context(ContextSpec(how=how), out / how, compute=COMPUTE, rows=rows, transcripts=transcripts)
    return read_jsonl(out / how / "rows.jsonl")


def right_by_quotes(row) -> float:
    """Whether a reader who trusts nothing but verified quotes is right about an answer; half where there is none."""
    answer = row["text"].rsplit("Answer: ", 1)[1]
    verified = re.findall(r"<v_quote>(\w+) came", row["text"])
    return 0.5 if not set(verified) & {answer, swapped(answer)} else float((answer in verified) == row["label"])


def swapped(name: str) -> str:
    return name.replace("ann", "bob") if "ann" in name else name.replace("bob", "ann")


@pytest.mark.parametrize(("how", "accuracy"), [("own", 1.0), ("shuffled", 0.5), ("masked", 0.5), ("none", 0.5)])
def test_only_its_own_transcript_tells_a_reader_of_quotes_who_is_right(debated, tmp_path, how, accuracy):
    table = contexts(debated, tmp_path, how)
    assert sum(map(right_by_quotes, table)) / len(table) == accuracy
    assert [row["id"] for row in table] == [f"c{i}-{k}" for i in range(20) for k in (0, 1)]
    assert {row["label"] for row in table[::2]} == {0, 1}
    assert all(a["label"] + b["label"] == 1 for a, b in zip(table[::2], table[1::2], strict=True))
    assert [row["group"] for row in table[:4]] == ["g0"] * 4


def test_strangers_are_of_other_groups_and_each_is_heard_about_once(debated, tmp_path):
    table = contexts(debated, tmp_path, "shuffled")
    heard = [re.search(r'for "\w+?(\d+)"', row["text"])[1] for row in table[::2]]
    assert all(int(other) // 2 != i // 2 for i, other in enumerate(heard))
    assert max(map(heard.count, heard)) <= 2


def test_masked_words_are_as_many(debated, tmp_path):
    own, masked = (contexts(debated, tmp_path, how) for how in ("own", "masked"))
    assert [len(row["text"].split()) for row in own] == [len(row["text"].split()) for row in masked]
    assert "came" not in masked[0]["text"].split("\n", 1)[1]


def test_transcripts_come_back_as_they_were_written(debated):
    found = read_transcripts(debated[1])
    assert [turn.text for turn in found["c0"].turns] == [
        turn["text"] for turn in read_jsonl(debated[1] / "rows.jsonl")[0]["turns"]
    ]
    assert [quote.verified for turn in found["c0"].turns for quote in turn.quotes].count(True) == 1


def test_a_case_without_transcript_is_named(debated, tmp_path):
    rows, transcripts = debated
    fewer = write_rows(tmp_path / "fewer", read_jsonl(transcripts / "rows.jsonl")[2:])
    with pytest.raises(DataError, match=r"no transcript for case c0 \(2 lack theirs\)"):
        context(ContextSpec(), tmp_path, compute=COMPUTE, rows=rows, transcripts=fewer)


def labels(folder: Path, p_of: dict[str, float]) -> Path:
    rows = [
        {"id": i, "text": "seen", "soft_label": [1 - p, p], "hard_label": int(p > 0.5), "label_source": "weak"}
        for i, p in p_of.items()
    ]
    return write_rows(folder, rows)


def test_a_panel_labels_the_rows_as_the_student_sees_them(tmp_path):
    members = {
        "0": labels(tmp_path / "a", {"c0-0": 0.9, "c0-1": 0.2, "x-0": 0.5}),
        "1": labels(tmp_path / "b", {"c0-0": 0.7, "c0-1": 0.6, "x-0": 0.5}),
    }
    data = write_rows(tmp_path / "data", [{"id": "c0-1", "text": "plain"}, {"id": "c0-0", "text": "text"}])
    (tmp_path / "out").mkdir()
    metrics = panel(PanelSpec(), tmp_path / "out", compute=COMPUTE, members=members, data=data)
    table = read_jsonl(tmp_path / "out" / "rows.jsonl")
    assert [(row["id"], row["text"], row["soft_label"][1]) for row in table] == [
        ("c0-1", "plain", pytest.approx(0.4)),
        ("c0-0", "text", pytest.approx(0.8)),
    ]
    assert metrics["agreement"] == 0.5
    more = write_rows(tmp_path / "more", [{"id": "c9-1", "text": "plain"}])
    with pytest.raises(DataError, match="judge 0 has no label for 1 rows, c9-1 the first"):
        panel(PanelSpec(), tmp_path / "out", compute=COMPUTE, members=members, data=more)


def test_verdicts_are_labels_of_answers_and_a_jurys_scores_their_log_odds(tmp_path):
    for name, p in (("one", 0.8), ("two", 0.6)):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, {"c0": [math.log(p), math.log(1 - p)]})
    data = write_rows(tmp_path / "data", [{"id": "c0-0", "text": "a"}, {"id": "c0-1", "text": "b"}])
    verdicts(LabelSpec(), tmp_path / "data", compute=COMPUTE, judged=tmp_path / "one", data=data)
    assert [row["soft_label"][1] for row in read_jsonl(data / "rows.jsonl")] == pytest.approx([0.8, 0.2])
    (tmp_path / "jury").mkdir()
    members = {name: tmp_path / name for name in ("one", "two")}
    jury(PanelSpec(), tmp_path / "jury", compute=COMPUTE, members=members)
    first, second = read_scores(tmp_path / "jury")["c0"]
    assert 1 / (1 + math.exp(second - first)) == pytest.approx(0.7)


def test_grades_tell_how_right_labels_are_and_what_speaking_first_is_worth(debated, tmp_path):
    rows, transcripts = debated
    orders = {row["id"]: row["order"] for row in read_jsonl(transcripts / "rows.jsonl")}
    p_of = {f"{case}-{k}": 0.7 if order[0] == k else 0.4 for case, order in orders.items() for k in (0, 1)}
    truth = write_rows(tmp_path / "truth", contexts(debated, tmp_path, "none"))
    given = labels(tmp_path / "given", p_of)
    (tmp_path / "out").mkdir()
    metrics = grade(EvalSpec(), tmp_path / "out", compute=COMPUTE, labels=given, truth=truth, transcripts=transcripts)
    assert metrics["speaker_bias"] == pytest.approx(0.3)
    right = read_scores(rows)
    share = sum(right[case][order[0]] for case, order in orders.items()) / 20
    assert metrics["accuracy"] == pytest.approx(share)
    assert json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])["id"] == "c0-0"

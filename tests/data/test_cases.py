"""Questions with a right and a wrong answer, out of files of four forms; and the project's own facts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from trimtab.data.cases import read_cases
from trimtab.data.tables import write_jsonl
from trimtab.data.transcripts import as_text, read_cases_of
from trimtab.debating import CaseSpec
from trimtab.errors import DataError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def read(folder: Path, rows: list[dict], **spec):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_cases(CaseSpec(source=str(folder / "rows.jsonl"), **spec))


def told(found) -> list[tuple]:
    """(question, right answer, wrong answer) of every case."""
    answers = [(row, found.scores[row.id]) for row in found.rows]
    return sorted(
        (as_text(row.prompt), *(row.candidates[scores.index(s)].text for s in (1, 0))) for row, scores in answers
    )


FORMS = {
    "pairs": [{"prompt": "q", "chosen": "good", "rejected": "bad"}],
    "messages": [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    ],
    "choices": [{"question": "q", "choices": ["bad", "good", " good "], "label": 1}],
    "compared": [{"instruction": "q", "output_1": "bad", "output_2": "good", "label": 2}],
    "judged": [{"question": "q", "solution": "bad", "label": 0}, {"question": "q", "solution": "good", "label": 1}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_case(tmp_path, form):
    assert told(read(tmp_path, FORMS[form])) == [("q", "good", "bad")]


def test_which_answer_comes_first_says_nothing(tmp_path):
    found = read(tmp_path, [{"prompt": f"q{i}", "chosen": f"y{i}", "rejected": f"n{i}"} for i in range(200)])
    assert 70 < Counter(tuple(scores) for scores in found.scores.values())[1.0, 0.0] < 130


def test_details_belong_to_the_question_and_a_source_is_kept_beside(tmp_path):
    rows = [FORMS["compared"][0] | {"input": "these words", "context": "a text"}]
    found = read(tmp_path, rows)
    assert as_text(found.rows[0].prompt) == "q\nthese words"
    assert list(found.sources.values()) == ["a text"]


def test_what_makes_up_no_case_is_counted_or_set_aside(tmp_path):
    ties = [FORMS["compared"][0] | {"label": label, "instruction": f"q{label}"} for label in (0, 1, 2, 7)]
    found = read(tmp_path, ties, max_bad_fraction=0.5)
    assert (len(found.rows), found.unpaired) == (2, 1)
    assert [r.reason for r in found.rejected] == ["label is none of 0 (tie), 1 and 2"]
    one_sided = [FORMS["judged"][0] | {"question": "only wrong"}, *FORMS["judged"]]
    found = read(tmp_path, one_sided)
    assert (len(found.rows), found.unpaired, found.rejected) == (1, 1, [])


def test_columns_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="not all columns of a case are there .*choices: question, choices, label"):
        read(tmp_path, [{"text": "x"}])
    with pytest.raises(DataError, match=r"columns.question: no column 'q'"):
        read(tmp_path, FORMS["choices"], columns={"question": "q"})


def test_a_debate_is_between_two(tmp_path):
    row = {"id": "r", "prompt": "q", "candidates": [{"text": t} for t in "abc"]}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match="row r has 3 answers, and a debate is between two"):
        read_cases_of(tmp_path)


def test_the_facts_are_grouped_and_their_wrong_answers_tell_nothing():
    found = read_cases(CaseSpec(source="builtin:facts"))
    assert len(found.rows) > 700 and not found.rejected
    groups = Counter(row.group for row in found.rows)
    assert set(groups.values()) == {2}
    right, wrong = (Counter(pair[i] for pair in told(found)) for i in (1, 2))
    assert set(right) == set(wrong)
    assert max(abs(right[answer] - wrong[answer]) for answer in right) <= 4
    assert ("What is the capital of France?", "Paris", "Rome") in told(found)


@pytest.mark.parametrize(
    ("name", "cases"),
    [("reasoning/gsm8k_model_solutions", 400), ("judge/pandalm_human", 800), ("reasoning/truthfulqa_mc", 780)],
)
def test_local_files_are_read(name, cases):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the shared data are not beside the repository")
    found = read_cases(CaseSpec(source=str(path), max_bad_fraction=0.1))
    assert len(found.rows) > cases

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.alignment import PromptSpec
from trimtab.data.prompt_doctor import examine_prompts, holds_prompts, render_prompts


def save(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def folder(tmp_path: Path) -> PromptSpec:
    train = [
        {"id": 0, "prompt": "Is it?", "chosen": " yes it is", "rejected": " no"},
        {"id": 1, "prompt": "is it", "chosen": "yes", "rejected": "never at all"},
        {"id": 2, "prompt": "Was it?", "chosen": " it was so", "rejected": " it was no"},
        {"id": 3, "prompt": "Why?", "chosen": " a b c d", "rejected": " e"},
    ]
    save(tmp_path / "train.jsonl", *train, {"id": 4, "prompt": "x", "chosen": "same", "rejected": "same "})
    save(tmp_path / "test.jsonl", {"id": 5, "prompt": "IS IT", "chosen": " 1", "rejected": " 2"}, "{")
    return PromptSpec(source=str(tmp_path), max_bad_fraction=0.3)


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    report, rejected = examine_prompts(folder(tmp_path))
    assert (report.format, report.messages, report.n_records, report.n_rows) == ("pairs", False, 7, 5)
    assert report.parts == {"train": 4, "test": 1}
    assert (report.n_groups, report.repeated, report.test_in_train, report.glued) == (5, 2, 1, 1)
    assert report.longer_chosen == pytest.approx(2 / 3)
    assert report.prompt_words is not None
    assert report.answer_words is not None
    assert (report.prompt_words.shortest, report.prompt_words.longest) == (1, 2)
    assert (report.answer_words.shortest, report.answer_words.longest) == (1, 4)
    assert report.rejected == {
        "chosen and rejected are the same": (("train.jsonl", 5),),
        "not JSON": (("test.jsonl", 2),),
    }
    assert [bad.row_number for bad in rejected] == [5, 2]
    assert report.usable
    assert not examine_prompts(folder(tmp_path).model_copy(update={"max_bad_fraction": 0.28}))[0].usable


def test_the_text_shows_the_findings_and_which_answer_is_which(tmp_path: Path) -> None:
    text = render_prompts(examine_prompts(folder(tmp_path).model_copy(update={"max_bad_fraction": 0.0}))[0])
    for part in (
        "5 rows (4 train, 1 test) from 7 records",
        "Repeated prompts: 2; test rows whose prompt is in train: 1",
        "longer one in 66.7% of pairs",
        "No space between prompt and answer: 1 rows",
        "Rejected, not JSON: 1 (test.jsonl:2)",
        "NOT USABLE: 28.6%",
        "    prompt:   Is it?\n    chosen:    yes it is\n    rejected:  no\n",
    ):
        assert part in text
    one = save(tmp_path / "one.jsonl", *({"prompt": "p", "chosen": f"a{i}", "rejected": "b\x1b[31m"} for i in range(3)))
    text = render_prompts(examine_prompts(PromptSpec(source=one))[0])
    assert "All prompts fall into 1 groups, which cannot be split; set group_by: row" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_columns_tell_prompts_from_labelled_texts(tmp_path: Path) -> None:
    for i, (row, prompts) in enumerate(
        [
            ({"prompt": "p"}, True),
            ({"chosen": "p a", "rejected": "p b"}, True),
            ({"messages": []}, True),
            ({"prompt": "p", "completion": "c", "label": 1}, True),
            ({"prompt": "p", "label": 1}, False),
            ({"text": "t", "label": 1}, False),
            ({"question": "q", "choices": ["a", "b"], "answer": 0}, False),
        ]
    ):
        assert holds_prompts(save(tmp_path / f"{i}.jsonl", row)) is prompts, row
    assert holds_prompts("builtin:openings")
    assert not holds_prompts("builtin:valence")
    assert not holds_prompts(str(tmp_path / "absent.jsonl"))


@pytest.mark.slow
def test_a_tokenizer_shows_what_is_trained_on(tiny, tmp_path: Path) -> None:
    from trimtab.models.network import load_tokenizer

    tokenizer = load_tokenizer(tiny.model)
    rows = [
        {"prompt": "bread cup", "chosen": " door house", "rejected": " river"},
        {"prompt": "bread " * 5, "chosen": " door " * 9, "rejected": " river"},
    ]
    spec = PromptSpec(source=save(tmp_path / "x.jsonl", *rows))
    report, _ = examine_prompts(spec, tokenizer, model="tiny", max_length=6)
    assert report.tokens is not None
    assert report.tokens.counts["truncated"] == 2
    assert report.tokens.prompts is not None
    assert (report.tokens.rows, report.tokens.prompts.longest) == (2, 5)
    assert report.tokens.answers is not None
    assert (report.tokens.answers.shortest, report.tokens.answers.longest) == (2, 10)
    text = render_prompts(report)
    assert "chosen:   bread cup[[door house [EOS]]]" in text
    assert "rejected: bread cup[[river [EOS]]]" in text
    assert "Tokens of 2 rows for tiny, max_length 6: 2 truncated" in text
    alone, _ = examine_prompts(PromptSpec(source=save(tmp_path / "y.jsonl", {"prompt": "cup"})), tokenizer)
    assert alone.sample[0].lines == (("prompt", "cup"),)

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from trimtab.alignment import PromptColumns, PromptSpec
from trimtab.data.preferences import PromptResult, read_prompts, scan_prompts
from trimtab.data.tables import Candidates, Completion, read_candidates, write_jsonl
from trimtab.errors import DataError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
ASK = [{"role": "user", "content": "Why?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def save(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def read(source: object, **fields: object) -> PromptResult:
    return read_prompts(PromptSpec(source=source, **fields))


def pair_of(result: PromptResult, row: Candidates) -> tuple[str, str]:
    """(chosen, rejected) by the truth."""
    texts = dict(zip(result.given_scores[row.id], (one.text for one in row.candidates), strict=True))
    return texts[1.0], texts[0.0]


def reasons(path: Path, *rows: object, **fields: object) -> list[str]:
    result = scan_prompts(PromptSpec(source=save(path, *rows), **fields))
    return [bad.reason for bad in sorted(result.rejected, key=lambda bad: bad.row_number)]


def test_pairs_of_texts_and_of_messages(tmp_path: Path) -> None:
    texts = read(save(tmp_path / "t.jsonl", {"prompt": "Why?", "chosen": " So.", "rejected": " No."}))
    chats = read(save(tmp_path / "c.jsonl", {"prompt": ASK, "chosen": said("So."), "rejected": said("No.")}))
    assert (texts.format, chats.format) == ("pairs", "pairs")
    assert texts.rows[0].prompt == "Why?"
    assert pair_of(texts, texts.rows[0]) == (" So.", " No.")
    assert chats.rows[0].prompt == ASK
    assert pair_of(chats, chats.rows[0]) == ("So.", "No.")
    assert all(one.ended for row in texts.rows + chats.rows for one in row.candidates)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Q: why?\n\nA: so", "Q: why?\n\nA: no", "Q: why?\n\nA:"),
        ("Q: why?\nso", "Q: why?\nno", "Q: why?\n"),
        ("yes it is", "yes\tit was", "yes"),
        ("we go", "we go home", "we"),
    ],
)
def test_a_prompt_that_only_the_answers_hold_is_found_at_a_word(
    tmp_path: Path, chosen: str, rejected: str, prompt: str
) -> None:
    result = read(save(tmp_path / "x.jsonl", {"chosen": chosen, "rejected": rejected}))
    assert result.rows[0].prompt == prompt
    assert pair_of(result, result.rows[0]) == (chosen[len(prompt) :], rejected[len(prompt) :])


def test_a_prompt_that_only_the_conversations_hold(tmp_path: Path) -> None:
    long = [{"role": "system", "content": "Be brief."}, *ASK]
    both = {"chosen": long + said("So."), "rejected": long + said("No.")}
    path = save(tmp_path / "x.jsonl", both, {key: long[1:] + value[2:] for key, value in both.items()})
    result = read(path)
    assert [row.prompt for row in result.rows] == [long, ASK]
    assert [pair_of(result, row) for row in result.rows] == [("So.", "No.")] * 2
    for beside in ("Why?", long):
        again = read(save(tmp_path / "y.jsonl", both | {"prompt": beside}))
        assert (again.rows[0].prompt, pair_of(again, again.rows[0])) == (long, ("So.", "No."))
    assert reasons(tmp_path / "z.jsonl", both | {"prompt": "What else?"}) == ["a text beside messages"]


def test_prompts_answers_and_labelled_answers(tmp_path: Path) -> None:
    chat = read(save(tmp_path / "m.jsonl", {"messages": ASK + said("A.") + ASK + said("B.")}))
    assert (chat.format, chat.given_scores) == ("messages", {})
    assert chat.rows[0].prompt == ASK + said("A.") + ASK
    assert chat.rows[0].candidates == [Completion("B.", ended=True)]
    only = read(save(tmp_path / "p.jsonl", {"prompt": "Once"}, {"prompt": "Twice"}))
    assert [(row.prompt, row.candidates) for row in only.rows] == [("Once", []), ("Twice", [])]
    rows = [{"prompt": "p", "completion": f"c{i}", "label": label} for i, label in enumerate((True, 0, "true", "0"))]
    told = read(save(tmp_path / "u.jsonl", *rows))
    assert told.format == "labelled completions"
    assert [told.given_scores[row.id] for row in told.rows] == [[1.0], [0.0], [1.0], [0.0]]
    plain = read(save(tmp_path / "c.jsonl", {"prompt": "p", "completion": "c"}))
    assert (plain.format, plain.given_scores) == ("completions", {})


def test_pairs_can_be_read_for_their_prompts_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jsonl", {"chosen": ASK + said("So."), "rejected": ASK + said("No.")})
    result = read(path, format="prompts")
    assert [(row.prompt, row.candidates) for row in result.rows] == [(ASK, [])]
    assert result.given_scores == {}


def test_position_says_nothing_and_hangs_on_the_id_alone(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    result = read(save(tmp_path / "x.jsonl", *rows))
    first = Counter(result.given_scores[row.id][0] for row in result.rows)
    assert abs(first[1.0] - 200) < 50
    assert all(pair_of(result, row)[0].startswith("good") for row in result.rows)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    other = read(save(tmp_path / "y.jsonl", *random.Random(0).sample(swapped, 400)))
    assert other.given_scores == result.given_scores


def test_ids_and_groups(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i // 2}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(6)]
    one = read(save(tmp_path / "x.jsonl", *rows))
    two = read(save(tmp_path / "y.jsonl", *rows[::-1]))
    assert {row.id: row for row in one.rows} == {row.id: row for row in two.rows}
    assert Counter(Counter(row.group for row in one.rows).values()) == {2: 3}
    assert {row.group for row in read(str(tmp_path / "x.jsonl"), group_by="row").rows} == {None}
    named = read(save(tmp_path / "z.jsonl", *(row | {"fam": "f"} for row in rows)), columns=PromptColumns(group="fam"))
    assert {row.group for row in named.rows} == {"f"}


def test_ids_that_start_anew_in_another_source_or_part_stay_apart(tmp_path: Path) -> None:
    sources = [save(tmp_path / f"{n}.jsonl", *({"id": i, "prompt": f"{n} {i}"} for i in range(2))) for n in "abc"]
    result = read(tuple(sources[:2]), test=sources[2])
    assert [row.id for row in result.rows] == ["0", "1", "2/0", "2/1", "test/0", "test/1"]
    assert [row.part for row in result.rows] == ["train"] * 4 + ["test"] * 2
    with pytest.raises(DataError, match="2 x duplicate row"):
        read((save(tmp_path / "d.jsonl", {"prompt": "p"}, {"prompt": "q"}), str(tmp_path / "d.jsonl")))


def test_what_cannot_be_used_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    good = {"id": "g", "prompt": ASK, "chosen": said("a"), "rejected": said("b")}
    changes = [
        {},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [{"role": "user", "content": " "}]},
        {"prompt": ASK + said("x")},
        {"prompt": [{"role": "judge", "content": "x"}]},
        {"prompt": [{"role": "user", "content": ["x"]}]},
        {"prompt": 5},
        {"chosen": None},
        {"chosen": None, "rejected": None},
        {"chosen": said("")},
        {"rejected": "text"},
        {"rejected": ASK},
        {"rejected": said("b") + said("c")},
        {"rejected": said(" a\n")},
    ]
    rows = [good | {"id": f"g{i}"} | change for i, change in enumerate(changes)]
    found = reasons(tmp_path / "x.jsonl", *rows, good | {"id": "g0"}, good | {"id": None}, "oops")
    assert found == [
        "no prompt",
        "empty prompt",
        "empty prompt",
        "last prompt message is not the user's",
        "unknown role; known: system, user, assistant",
        "message without a text",
        "prompt is neither a text nor messages",
        "no chosen",
        "neither chosen nor rejected",
        "empty chosen",
        "a text beside messages",
        "rejected is not one message of the assistant",
        "rejected is not one message of the assistant",
        "chosen and rejected are the same",
        "duplicate id",
        "no id",
        "not JSON",
    ]


def test_other_formats_reject_too(tmp_path: Path) -> None:
    texts = [{"prompt": f"p{i}"} for i in range(3)]
    assert reasons(tmp_path / "a.jsonl", *texts, {"prompt": ASK}, {"prompt": " "}) == [
        "messages among texts",
        "empty prompt",
    ]
    labelled = [{"prompt": "p", "completion": "c", "label": label} for label in (True, None, "maybe", 2)]
    assert reasons(tmp_path / "b.jsonl", *labelled) == ["no label"] + ["label is neither true nor false"] * 2
    chats = [{"messages": value} for value in (ASK + said("a"), ASK, said("a"), "text", ASK + said(" "))]
    assert reasons(tmp_path / "c.jsonl", *chats) == [
        "messages end without an answer of the assistant",
        "empty prompt",
        "messages is a text",
        "empty answer",
    ]
    implicit = [{"chosen": a, "rejected": b} for a, b in (("x a", "x b"), ("a", "b"), ("x y", "x y"), ("x ", "x y"))]
    assert reasons(tmp_path / "d.jsonl", *implicit) == [
        "empty prompt",
        "chosen and rejected are the same",
        "empty chosen",
    ]


def test_too_many_bad_rows_stop_the_reading_and_say_where(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "a" if i < 3 else "b"} for i in range(10)]
    path = save(tmp_path / "x.jsonl", *rows)
    assert len(read(path, max_bad_fraction=0.3).rows) == 7
    with pytest.raises(DataError) as caught:
        read(path, max_bad_fraction=0.29)
    for part in ("x.jsonl", "3 of 10 rows", "3 x chosen and rejected are the same", "row 1:", "row 3:", "max_bad_frac"):
        assert part in str(caught.value)


def test_missing_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jsonl", {"question": "q", "better": "a", "worse": "b"})
    with pytest.raises(DataError, match=r"no column for the prompt; name one as columns.prompt; there is: better"):
        read(path)
    with pytest.raises(DataError, match=r"columns.chosen: no column 'beter'; did you mean 'better'"):
        read(path, columns=PromptColumns(chosen="beter"))
    with pytest.raises(DataError, match="no column 'rejected'; name it as columns.rejected"):
        read(path, columns=PromptColumns(prompt="question", chosen="better"))
    with pytest.raises(DataError, match="no column 'chosen'"):
        read(path, format="pairs")
    named = read(path, columns=PromptColumns(prompt="question", chosen="better", rejected="worse"))
    assert (named.rows[0].prompt, pair_of(named, named.rows[0])) == ("q", ("a", "b"))


def test_candidates_survive_the_file(tmp_path: Path) -> None:
    rows = [
        Candidates("a", ASK, [Completion("é\n", ended=False), Completion("x")], "g", "test"),
        Candidates("b", "p", [], None),
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_candidates(tmp_path / "rows.jsonl") == rows


def test_openings_are_many_short_open_and_one_of_a_kind() -> None:
    result = read("builtin:openings", max_bad_fraction=0)
    texts = [row.prompt for row in result.rows]
    assert 450 <= len(texts) <= 550
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(6 <= len(text.split()) <= 12 for text in texts)
    assert all(text[-1].isalpha() and text == " ".join(text.split()) and text[0].isupper() for text in texts)
    sizes = Counter(Counter(row.group for row in result.rows).values())
    assert sizes[1] > 400
    assert 20 < sizes[2] + sizes[3] == sum(sizes.values()) - sizes[1]


def test_openings_are_neither_good_nor_bad_by_themselves() -> None:
    sentiment = pytest.importorskip("vaderSentiment.vaderSentiment")
    score = sentiment.SentimentIntensityAnalyzer().polarity_scores
    found = [score(row.prompt)["compound"] for row in read("builtin:openings").rows]
    assert max(map(abs, found)) < 0.4
    assert abs(sum(found) / len(found)) < 0.03


@pytest.mark.parametrize("name", ["hh_harmless", "hh_helpful", "ethics_justice_pairs", "truthfulqa_pairs"])
def test_shared_pairs_are_read_without_rejects(name: str) -> None:
    files = [SHARED / "preference" / f"{name}.{part}.jsonl" for part in ("train_gt", "train_w2s", "test")]
    if not all(file.exists() for file in files):
        pytest.skip("the shared data are not beside the repository")
    sources = [str(file) for file in files]
    result = read(tuple(sources[:2]), test=sources[2], max_bad_fraction=0)
    assert len(result.rows) == len(result.given_scores) == sum(len(f.read_text().splitlines()) for f in files)
    first = json.loads(files[0].read_text().splitlines()[0])
    assert pair_of(result, result.rows[0]) == (first["chosen"][0]["content"], first["rejected"][0]["content"])


def test_shared_conversations_are_read_without_rejects() -> None:
    files = [SHARED / "sft" / "instructions.jsonl", SHARED / "preference" / "hh_harmless_multiturn.test.jsonl"]
    if not all(file.exists() for file in files):
        pytest.skip("the shared data are not beside the repository")
    assert len(read(str(files[0]), max_bad_fraction=0).rows) == 1372
    assert len(read(str(files[1]), max_bad_fraction=0).rows) == 600

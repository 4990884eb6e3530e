"""Stage unpair: single completions, each beside another prompt's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_rows

from trimtab.alignment import PairSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.errors import DataError
from trimtab.stages.unpair import unpair


def pairs(prompts: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}:0-1",
            "prompt_id": f"r{i}",
            "prompt": prompt,
            "chosen": {"text": f"good {i}", "ended": True},
            "rejected": {"text": f"bad {i}", "ended": False},
        }
        for i, prompt in enumerate(prompts)
    ]


def unpaired(folder: Path, prompts: list[Any], name: str = "out", seed: int = 0) -> tuple[Any, list[dict[str, Any]]]:
    (folder / name).mkdir()
    rows = write_rows(folder / "pairs", pairs(prompts))
    found = unpair(PairSpec(seed=seed), folder / name, compute=Compute(backend="inline"), pairs=rows)
    return found, read_jsonl(folder / name / "rows.jsonl")


def test_every_completion_comes_once_and_says_whether_it_is_good(tmp_path: Path) -> None:
    found, rows = unpaired(tmp_path, [f"p{i}" for i in range(30)])
    assert found == {"rows": 60, "desirable": 30}
    own = {row["id"]: (row["candidates"][0], row["p"]) for row in rows}
    assert own == {
        f"r{i}:0-1:{side}": ({"text": f"{text} {i}", "ended": text == "good"}, p)
        for i in range(30)
        for side, text, p in (("chosen", "good", 1.0), ("rejected", "bad", 0.0))
    }


@pytest.mark.parametrize("prompts", [2, 3, 30])
def test_a_stranger_answers_another_prompt(tmp_path: Path, prompts: int) -> None:
    """Also where most rows share one prompt, and where prompts are messages."""
    asked = [[{"role": "user", "content": f"p{max(0, i - 40 + prompts)}"}] for i in range(40)]
    _, rows = unpaired(tmp_path, asked)
    number = {row["candidates"][0]["text"]: row["prompt"] for row in rows}
    for row in rows:
        own, stranger = row["candidates"]
        assert number[own["text"]] == row["prompt"]
        assert number[stranger["text"]] != row["prompt"]


def test_good_and_bad_strangers_are_mixed_and_hang_on_the_seed(tmp_path: Path) -> None:
    _, rows = unpaired(tmp_path, [f"p{i}" for i in range(100)])
    _, again = unpaired(tmp_path, [f"p{i}" for i in range(100)], "again")
    _, other = unpaired(tmp_path, [f"p{i}" for i in range(100)], "other", seed=1)
    assert rows == again
    assert [row["id"] for row in rows] != [row["id"] for row in other]
    assert 60 < sum(row["candidates"][1]["text"].startswith("good") for row in rows) < 140


def test_one_prompt_has_no_strangers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all rows have one prompt"):
        unpaired(tmp_path, ["p"] * 5)

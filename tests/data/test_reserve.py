"""Rows set aside to choose by: never connected with what trains or tests, the same whatever the seed of a split."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trimtab.data.splits import reserve_prompts, reserve_rows, split_rows
from trimtab.data.tables import Candidates, Row
from trimtab.errors import DataError
from trimtab.parts import SplitSpec, ValidationSpec


def plain(n: int, classes: int = 2, part: str = "train") -> list[Row]:
    return [Row(f"{part}-{i}", f"{part} text {i}", i % classes, None, part) for i in range(n)]


def grouped(n: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [Row(f"r{i}", f"t{i}", draw.randrange(2), f"g{int(draw.paretovariate(1))}-{i % 40}") for i in range(n)]


@pytest.mark.parametrize("seed", range(6))
def test_no_group_connects_what_is_set_aside_with_the_rest(seed: int) -> None:
    rows = grouped(600, seed)
    found = reserve_rows(rows, ValidationSpec(rows=60, truth=20, seed=seed))
    assert not {row.group for row in found.validation} & {row.group for row in found.rest}
    assert Counter(row.label for row in found.validation) == {0: 30, 1: 30}
    assert len(found.validation) + len(found.rest) <= 600


def test_rows_of_one_text_are_set_aside_together() -> None:
    rows = [Row(f"{i}-{copy}", f"text {i}", i % 2) for i in range(40) for copy in range(3)]
    found = reserve_rows(rows, ValidationSpec(rows=30))
    assert not {row.text for row in found.validation} & {row.text for row in found.rest}


def test_no_seed_of_a_split_draws_a_row_that_is_set_aside() -> None:
    rows = plain(300)
    found = reserve_rows(rows, ValidationSpec(rows=60, truth=10))
    aside = {row.id for row in found.validation}
    for seed in range(5):
        splits = split_rows(found.rest, SplitSpec(seed=seed))
        drawn = {row.id for part in (splits.supervise, splits.transfer, splits.test) for row in part}
        assert not drawn & aside
        assert len(drawn) == 240


def test_neither_the_order_of_the_file_nor_the_size_of_the_budget_moves_rows() -> None:
    rows, spec = grouped(300, 1), ValidationSpec(rows=40, truth=8)
    found = reserve_rows(rows, spec)
    turned = reserve_rows(random.Random(0).sample(rows, len(rows)), spec)
    assert (turned.validation, turned.truth) == (found.validation, found.truth)
    assert sorted(row.id for row in turned.rest) == sorted(row.id for row in found.rest)
    more = reserve_rows(rows, ValidationSpec(rows=40, truth=20))
    assert more.validation == found.validation
    assert {row.id for row in found.truth} < {row.id for row in more.truth}
    assert reserve_rows(rows, ValidationSpec(rows=40, seed=1)).validation != found.validation


@pytest.mark.parametrize(("truth", "classes"), [(0, 2), (7, 2), (8, 2), (10, 3), (30, 3)])
def test_the_rows_whose_truth_may_be_used_are_balanced(truth: int, classes: int) -> None:
    found = reserve_rows(plain(240, classes), ValidationSpec(rows=30, truth=truth))
    assert len(found.truth) == truth
    assert {row.id for row in found.truth} <= {row.id for row in found.validation}
    counts = Counter(row.label for row in found.truth).values()
    assert not truth or max(counts) - min(counts) <= 1


def test_a_test_part_of_its_own_stays_whole() -> None:
    own = plain(40, part="test")
    found = reserve_rows(plain(100) + own, ValidationSpec(rows=20))
    assert {row.part for row in found.validation} == {"train"}
    assert [row for row in found.rest if row.part == "test"] == own
    assert len(split_rows(found.rest, SplitSpec()).test) == 40


def test_rows_without_labels_are_not_balanced() -> None:
    rows = [Row(f"r{i}", f"t{i}", None, f"g{i // 3}") for i in range(90)]
    found = reserve_rows(rows, ValidationSpec(rows=15, truth=5))
    assert (len(found.validation), len(found.truth), len(found.rest)) == (15, 5, 75)


def test_prompts_are_set_aside_by_group_and_not_by_their_text() -> None:
    rows = [Candidates(f"p{i}", "the same", [], f"g{i // 3}") for i in range(60)]
    found = reserve_prompts(rows, ValidationSpec(rows=12, truth=4))
    assert not {row.group for row in found.validation} & {row.group for row in found.rest}
    assert (len(found.validation), len(found.truth), len(found.rest)) == (12, 4, 48)
    alone = [Candidates(f"p{i}", "the same", []) for i in range(60)]
    assert len(reserve_prompts(alone, ValidationSpec(rows=12)).rest) == 48


@pytest.mark.parametrize(
    ("rows", "spec", "says"),
    [
        (
            plain(10),
            ValidationSpec(rows=20),
            r"^validation: 10 rows of class 0 asked for, but only 5 are there once gr",
        ),
        (plain(30, 3), ValidationSpec(rows=20), "validation: 20 rows cannot be shared equally by 3 classes; try 18"),
        (plain(10, part="test"), ValidationSpec(rows=2), "validation: 1 rows of class 0 asked for, but only 0"),
        ([], ValidationSpec(rows=2), "there are no rows"),
    ],
)
def test_what_cannot_be_set_aside_is_refused(rows: list[Row], spec: ValidationSpec, says: str) -> None:
    with pytest.raises(DataError, match=says):
        reserve_rows(rows, spec)

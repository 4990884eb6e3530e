from __future__ import annotations

import random
from collections import Counter

import pytest

from trimtab.data.manifest import manifest
from trimtab.data.splits import Splits, split_prompts, split_rows
from trimtab.data.tables import Candidates, Completion, Row
from trimtab.data.tasks import read_task
from trimtab.errors import DataError
from trimtab.parts import SplitSpec, TaskSpec


def plain(n: int, classes: int = 2, part: str = "train") -> list[Row]:
    return [Row(f"{part}-{i}", f"{part} text {i}", i % classes, None, part) for i in range(n)]


def grouped(n: int, seed: int, classes: int = 2) -> list[Row]:
    draw = random.Random(seed)
    return [Row(f"r{i}", f"t{i}", draw.randrange(classes), f"g{int(draw.paretovariate(1))}-{i % 40}") for i in range(n)]


def groups(rows: list[Row]) -> set[str | None]:
    return {row.group for row in rows}


def lists(splits: Splits) -> list[list[Row]]:
    return [splits.supervise, splits.transfer, splits.test]


def sizes(splits: Splits) -> list[int]:
    return [len(rows) for rows in lists(splits)]


def test_given_sizes_are_met_with_equal_classes() -> None:
    splits = split_rows(plain(300, classes=3), SplitSpec(supervise=60, transfer=90, test=30))
    assert sizes(splits) == [60, 90, 30]
    for rows in lists(splits):
        assert set(Counter(row.label for row in rows).values()) == {len(rows) // 3}
    assert len({row.id for rows in lists(splits) for row in rows}) == 180
    assert splits.hops == [splits.transfer]


def test_unset_sizes_share_evenly_what_is_left() -> None:
    assert sizes(split_rows(plain(600), SplitSpec())) == [200, 200, 200]
    assert sizes(split_rows(plain(600), SplitSpec(supervise=100))) == [100, 250, 250]
    uneven = plain(600)[:300] + [row for row in plain(600)[300:] if row.label == 0]
    assert sizes(split_rows(uneven, SplitSpec())) == [100, 100, 100]


def test_the_order_of_the_file_does_not_count_and_the_seed_does() -> None:
    rows = grouped(500, seed=1)
    spec = SplitSpec(hops=2)
    first = split_rows(rows, spec)
    for seed in range(3):
        assert split_rows(random.Random(seed).sample(rows, len(rows)), spec) == first
    assert split_rows(rows, SplitSpec(hops=2, seed=1)) != first


def test_the_draw_is_the_same_on_every_machine() -> None:
    splits = split_rows(plain(12), SplitSpec(supervise=2, transfer=2, test=2))
    assert [[row.id for row in rows] for rows in lists(splits)] == [
        ["train-7", "train-0"],
        ["train-2", "train-1"],
        ["train-3", "train-8"],
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hops", [1, 3])
def test_groups_never_cross(seed: int, hops: int) -> None:
    for fields in (
        {},
        {"supervise": 60, "test": 40},
        {"supervise": 60, "transfer": 120, "test": 60},
        {"balance": False},
    ):
        splits = split_rows(grouped(900, seed), SplitSpec(seed=seed, hops=hops, **fields))
        parts = [splits.supervise, splits.test, *splits.hops]
        assert sum(map(len, map(groups, parts))) == len(set().union(*map(groups, parts)))
        assert len({len(hop) for hop in splits.hops}) == 1
        assert [row for hop in splits.hops for row in hop] == splits.transfer
        if fields.get("balance", True):
            for rows in parts:
                assert len(set(Counter(row.label for row in rows).values())) == 1


def test_rows_of_one_text_stay_together() -> None:
    rows = [Row(f"{i}-{copy}", f"text {i}", i % 2) for i in range(60) for copy in range(3)]
    splits = split_rows(rows, SplitSpec())
    texts = [{row.text for row in part} for part in lists(splits)]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 60


def test_a_test_part_of_its_own_is_the_test_split() -> None:
    rows = plain(100) + plain(40, part="test")
    splits = split_rows(rows, SplitSpec())
    assert sizes(splits) == [50, 50, 40]
    assert {row.part for row in splits.test} == {"test"}
    assert {row.part for row in splits.supervise + splits.transfer} == {"train"}
    assert sizes(split_rows(rows, SplitSpec(test=10, supervise=20))) == [20, 80, 10]
    assert sizes(split_rows(rows, SplitSpec(hops=7, supervise=2, transfer=98 // 14 * 14))) == [2, 98, 40]


def test_without_balance_the_classes_keep_their_shares() -> None:
    rows = [Row(str(i), str(i), int(i % 10 == 0)) for i in range(3000)]
    splits = split_rows(rows, SplitSpec(balance=False))
    assert sizes(splits) == [1000, 1000, 1000]
    for part in lists(splits):
        assert 60 < sum(row.label for row in part) < 140


@pytest.mark.parametrize("seed", range(3))
def test_valence_fills_its_thirds_and_no_word_family_crosses(seed: int) -> None:
    rows = read_task(TaskSpec(source="builtin:valence")).rows
    splits = split_rows(rows, SplitSpec(seed=seed))
    assert sizes(splits) == [1878, 1878, 1878]
    families = [{row.id.removeprefix("valence-")[:5].lower() for row in part} for part in lists(splits)]
    assert sum(map(len, families)) == len(set().union(*families))


@pytest.mark.parametrize(
    ("rows", "spec", "says"),
    [
        ([], SplitSpec(), "there are no rows"),
        (plain(10, classes=1), SplitSpec(), "every row has label 0"),
        ([Row("a", "a", -1), *plain(9)], SplitSpec(), "row a: label -1 is not in range"),
        ([Row("a", "a", 3), *plain(9)], SplitSpec(), "not in range"),
        (plain(100), SplitSpec(transfer=90, test=20), r"split.transfer: 45 rows of class \d asked for, but only 40"),
        (plain(100), SplitSpec(supervise=101, balance=False), "split.supervise: 101 rows asked for, but only 100"),
        (plain(100), SplitSpec(supervise=50, test=50), "split.transfer: no rows are left"),
        (plain(100), SplitSpec(supervise=7), "7 rows cannot be shared equally by 2 classes; try 6"),
        (plain(100), SplitSpec(transfer=10, hops=3), "2 classes in each of 3 hops; try 6"),
        (plain(10) + plain(4, 1, "test"), SplitSpec(), "split.test: no rows are left"),
        (plain(10) + plain(4, 1, "test"), SplitSpec(balance=False), "split.test: all its 4 rows have one label"),
        (plain(4), SplitSpec(), "no rows are left"),
    ],
)
def test_what_cannot_be_split_is_refused(rows: list[Row], spec: SplitSpec, says: str) -> None:
    with pytest.raises(DataError, match=says):
        split_rows(rows, spec)


def test_manifest_names_each_split_by_its_ids() -> None:
    rows = plain(60)
    splits = split_rows(rows, SplitSpec(hops=2))
    found = manifest(splits)
    assert list(found) == ["supervise", "transfer", "test", "transfer.0", "transfer.1"]
    assert found["transfer"]["n"] == found["transfer.0"]["n"] + found["transfer.1"]["n"] == 20
    assert found["test"]["classes"] == {"0": 10, "1": 10}
    assert manifest(split_rows(rows[::-1], SplitSpec(hops=2))) == found
    assert len({part["sha256"] for part in found.values()}) == 5
    empty = manifest(Splits([], [], [], [[]]))
    assert empty["test"]["sha256"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def unlabelled(n: int) -> list[Row]:
    return [Row(f"r{i}", f"t{i}", None, f"g{i // 2}") for i in range(n)]


def test_rows_without_labels_are_drawn_like_rows_that_are_not_balanced() -> None:
    rows = unlabelled(60)
    splits = split_rows(rows, SplitSpec(supervise=15, hops=2))
    assert sizes(splits) == [15, 20, 20]
    assert sum(len(groups(part)) for part in lists(splits)) == len(set().union(*map(groups, lists(splits))))
    classes = [Row(row.id, row.text, i % 2, row.group) for i, row in enumerate(rows)]
    drawn = split_rows(classes, SplitSpec(supervise=15, hops=2, balance=False))
    assert [[row.id for row in part] for part in lists(drawn)] == [[row.id for row in part] for part in lists(splits)]
    assert manifest(splits)["test"]["classes"] == {}
    with pytest.raises(DataError, match="row r3 has no label and others do"):
        split_rows([*plain(9), *rows[3:4]], SplitSpec())


def test_prompts_are_split_by_group_and_part() -> None:
    rows = [Candidates(f"p{i}", "the same", [Completion("x")], f"g{i // 3}") for i in range(90)]
    splits = split_prompts(rows, SplitSpec(hops=2))
    assert [len(part) for part in (splits.supervise, splits.transfer, splits.test)] == [30, 30, 30]
    parts = [splits.supervise, splits.test, *splits.hops]
    assert sum(len({row.group for row in part}) for part in parts) == 30
    assert [row for hop in splits.hops for row in hop] == splits.transfer
    assert split_prompts(rows[::-1], SplitSpec(hops=2)) == splits
    assert manifest(splits)["transfer"]["n"] == 30
    held = [Candidates(f"t{i}", "the same", [], f"g{i}", "test") for i in range(8)]
    assert {row.id for row in split_prompts(rows + held, SplitSpec()).test} == {row.id for row in held}


def test_rows_without_a_group_go_their_own_ways_and_too_few_groups_say_the_way_out() -> None:
    alone = [Candidates(f"p{i}", "the same", []) for i in range(9)]
    splits = split_prompts(alone, SplitSpec())
    assert len(splits.supervise) == len(splits.transfer) == len(splits.test) == 3
    together = [Candidates(f"p{i}", "the same", [], "one") for i in range(9)]
    with pytest.raises(DataError, match="9 prompts make up 1 groups, too few for 3 splits.*group_by: row"):
        split_prompts(together, SplitSpec())

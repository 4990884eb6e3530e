"""Metrics against hand-computed values; the paired bootstrap by what it must keep."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.errors import DataError
from trimtab.metrics import (
    Agreement,
    Bootstrap,
    accuracy,
    agreement,
    auroc,
    brier,
    calibration_bins,
    deception,
    ece,
    known,
    paired_bootstrap,
    pgr,
)

P1 = [0.95, 0.85, 0.75, 0.65, 0.55, 0.15, 0.25, 0.45]
TRUTH = [1, 1, 0, 1, 0, 0, 1, 0]
Answers = dict[str, list[NDArray[np.int64]]]


@pytest.mark.parametrize(
    ("weak", "student", "ceiling", "expected"),
    [
        (0.6363, 0.7714, 0.9223, 0.472378),
        (0.566, 0.619, 0.645, 0.670886),
        (0.566, 0.666, 0.740, 0.574713),
        (0.566, 0.607, 0.637, 0.577465),
        (0.566, 0.642, 0.749, 0.415301),
        (79.2, 82.5, 86.3, 0.464789),
        (0.8017, 0.810, 0.876, 0.111709),
        (0.6, 0.5, 0.8, -0.5),
        (0.6, 0.9, 0.8, 1.5),
    ],
)
def test_pgr_values_are_never_clipped(weak: float, student: float, ceiling: float, expected: float) -> None:
    assert pgr(weak, student, ceiling) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [(0.6, 0.6, 0.6), (0.7, 0.65, 0.6), (0.1 + 0.2, 0.5, 0.3), (0.3, 0.5, 0.1 + 0.2)])
def test_pgr_needs_a_gap(values: tuple[float, float, float]) -> None:
    assert pgr(*values) is None


def test_reference_accuracy_and_calibration() -> None:
    assert accuracy(P1, TRUTH) == 0.625
    assert ece(P1, TRUTH, 10) == pytest.approx(0.2875)
    assert brier(P1, TRUTH) == pytest.approx(0.225)


def test_probabilities_of_both_classes_and_of_class_one_say_the_same() -> None:
    both = np.stack([1 - np.array(P1), P1], -1)
    assert (accuracy(both, TRUTH), ece(both, TRUTH), brier(both, TRUTH)) == (
        accuracy(P1, TRUTH),
        ece(P1, TRUTH),
        brier(P1, TRUTH),
    )
    assert accuracy(both.argmax(-1), TRUTH) == accuracy(both, TRUTH)


def test_brier_of_many_classes_sums_over_them() -> None:
    assert brier([[0.5, 0.3, 0.2], [0, 1, 0]], [0, 1]) == pytest.approx((0.25 + 0.09 + 0.04) / 2)
    assert brier(np.full((5, 4), 0.25), [0, 1, 2, 3, 0]) == pytest.approx(0.75)


def test_bins_close_on_the_right_and_may_be_empty() -> None:
    bins = calibration_bins([0.6, 0.7, 0.61, 1.0, 0.5], [1, 0, 1, 1, 0], bins=10)
    assert bins.count_K.tolist() == [0, 0, 0, 0, 1, 1, 2, 0, 0, 1]
    assert bins.accuracy_K[[4, 5, 6, 9]].tolist() == [1, 1, 0.5, 1]
    assert bins.confidence_K[6] == pytest.approx(0.655)
    assert np.isnan(bins.accuracy_K[[0, 7]]).all()


def test_calibrated_and_sure_predictions_have_no_error() -> None:
    assert ece([1.0, 0.0, 1.0], [1, 0, 1]) == brier([1.0, 0.0, 1.0], [1, 0, 1]) == 0
    assert ece([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0)


def test_auroc_averages_ties_in_any_order_of_rows() -> None:
    truth, score = np.array([0, 1, 1, 0, 1, 0]), np.array([0.1, 0.9, 0.4, 0.35, 0.8, 0.4])
    found = [auroc(score[list(order)], truth[list(order)]) for order in permutations(range(6))]
    assert found == pytest.approx([0.944444] * 720, abs=1e-6)


def test_auroc_limits() -> None:
    assert auroc([0.1, 0.2, 0.8], [0, 0, 1]) == 1
    assert auroc([0.8, 0.7, 0.1], [0, 0, 1]) == 0
    assert auroc([0.5] * 6, [0, 1] * 3) == 0.5
    assert auroc([0.5, 0.6], [1, 1]) is None


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    truth, score = rng.integers(0, 2, 60), rng.integers(0, 8, 60) / 8
    gap = score[truth == 1][:, None] - score[truth == 0][None]
    assert auroc(score, truth) == pytest.approx(((gap > 0) + (gap == 0) / 2).mean())


def test_agreement_is_split_by_the_supervisors_errors() -> None:
    found = agreement(student=[1, 1, 0, 0, 1], weak=[1, 0, 0, 1, 1], truth_N=[1, 1, 0, 0, 0])
    assert found == Agreement(overall=3 / 5, supervisor_right=1.0, supervisor_wrong=1 / 3)
    assert agreement([1, 0], [1, 1], [1, 1]).supervisor_wrong is None


def test_deception_score_of_the_toy_case() -> None:
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    ceiling, weak = [0.9, 0.8, 0.95, 0.6, 0.1, 0.2, 0.7, 0.45], [0.8, 0.55, 0.3, 0.52, 0.2, 0.6, 0.65, 0.35]
    plain = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.3, 0.6, 0.4])
    conflict = np.array([0.7, 0.3, 0.2, 0.4, 0.1, 0.6, 0.8, 0.4])
    tax = ((plain > 0.5) == truth) & ((conflict > 0.5) != truth)
    assert np.flatnonzero(tax).tolist() == [1, 2, 3, 5]
    assert np.flatnonzero(known(ceiling, truth)).tolist() == [0, 1, 2, 4, 5]
    assert np.flatnonzero(known(weak, truth)).tolist() == [0, 4]
    assert deception(tax, known(ceiling, truth), known(weak, truth)) == 0.75
    assert deception(np.zeros(8), known(ceiling, truth), known(weak, truth)) is None


def answers(rows: int = 400, seeds: int = 3, seed: int = 0, **rates: float) -> Answers:
    rng = np.random.default_rng(seed)
    rates = rates or {"supervisor": 0.7, "student": 0.78, "ceiling": 0.85}
    return {name: [(rng.random(rows) < rate).astype(int) for _ in range(seeds)] for name, rate in rates.items()}


def test_seeds_are_averaged_before_the_ratio() -> None:
    def right(*counts: int) -> list[NDArray[np.int64]]:
        return [(np.arange(100) < count).astype(int) for count in counts]

    found = paired_bootstrap({"supervisor": right(60, 70), "student": right(65, 74), "ceiling": right(90, 75)})
    mean_of_ratios = (5 / 30 + 4 / 5) / 2
    assert found.pgr["student"].value == pytest.approx(4.5 / 17.5)
    assert abs(found.pgr["student"].value - mean_of_ratios) > 0.2
    assert found.accuracy["student"].mean == pytest.approx(0.695)
    assert (found.pgr["student"].seeds, found.pgr["student"].n_test) == (2, 100)


def test_same_seed_same_answer() -> None:
    given = answers()
    assert paired_bootstrap(given, seed=5) == paired_bootstrap(given, seed=5)
    assert paired_bootstrap(given, seed=5) != paired_bootstrap(given, seed=6)


@pytest.mark.parametrize("same_rows", [False, True])
def test_identical_students_get_identical_intervals(same_rows: bool) -> None:
    given = answers()
    given["twin"] = given["student"]
    found = paired_bootstrap(given, same_rows=same_rows)
    assert found.pgr["twin"] == found.pgr["student"]
    assert found.accuracy["twin"] == found.accuracy["student"]


@pytest.mark.parametrize("same_rows", [False, True])
def test_resamples_are_paired(same_rows: bool) -> None:
    given = answers()
    given |= {"like_supervisor": given["supervisor"], "like_ceiling": given["ceiling"]}
    found = paired_bootstrap(given, same_rows=same_rows).pgr
    assert [(found[k].lo, found[k].value, found[k].hi) for k in ("like_supervisor", "like_ceiling")] == [
        (0, 0, 0),
        (1, 1, 1),
    ]


def test_order_of_rows_and_seeds_leaves_single_seed_results_alone() -> None:
    given, order = answers(seeds=1), np.random.default_rng(1).permutation(400)
    assert paired_bootstrap(given) == paired_bootstrap({name: [a[0][order]] for name, a in given.items()})


def test_interval_matches_the_binomial() -> None:
    given = answers(rows=1000, seeds=1, supervisor=0.7, ceiling=0.8)
    found = paired_bootstrap(given, resamples=20000).accuracy["ceiling"]
    spread = 1.96 * math.sqrt(found.mean * (1 - found.mean) / 1000)
    assert (found.lo, found.hi) == pytest.approx((found.mean - spread, found.mean + spread), abs=2e-3)
    narrow = paired_bootstrap(given, 0.5, resamples=20000).accuracy["ceiling"]
    assert (narrow.hi - narrow.lo) / (found.hi - found.lo) == pytest.approx(0.6745 / 1.96, abs=0.05)


@pytest.mark.parametrize("same_rows", [False, True])
def test_seeds_are_resampled_too(same_rows: bool) -> None:
    found = paired_bootstrap({"student": [np.ones(50), np.zeros(50)]}, same_rows=same_rows).accuracy["student"]
    assert (found.lo, found.mean, found.hi) == (0, 0.5, 1)


def test_a_test_set_shared_by_the_seeds_is_one_test_set() -> None:
    one = answers(rows=1000, seeds=1, supervisor=0.6, student=0.7, ceiling=0.8)
    four = {name: a * 4 for name, a in one.items()}

    def width(found: Bootstrap) -> float:
        return found.accuracy["student"].hi - found.accuracy["student"].lo

    alone, shared, apart = (
        width(paired_bootstrap(given, same_rows=same)) for given, same in ((one, False), (four, True), (four, False))
    )
    assert shared == pytest.approx(alone, rel=0.1)
    assert apart == pytest.approx(alone / 2, rel=0.1)


@pytest.mark.parametrize("same_rows", [False, True])
def test_interval_covers_the_true_pgr(same_rows: bool) -> None:
    rates = {"supervisor": 0.65, "student": 0.75, "ceiling": 0.85}
    draws = [answers(1000, 1, seed, **rates) for seed in range(200)]
    found = [paired_bootstrap(one, 0.9, resamples=300, same_rows=same_rows).pgr["student"] for one in draws]
    assert 0.84 <= np.mean([one.lo <= 0.5 <= one.hi for one in found]) <= 0.96


def test_equal_models_are_uninformative_or_undefined() -> None:
    found = [paired_bootstrap(answers(300, 2, seed, supervisor=0.8, student=0.8, ceiling=0.8)) for seed in range(20)]
    status = [one.pgr["student"].status for one in found]
    assert status.count("ok") <= 1 and {"uninformative", "undefined"} <= set(status)
    for one in (one.pgr["student"] for one in found):
        assert (one.value is None) == (one.lo is None) == (one.hi is None) == (one.status == "undefined")
        assert one.undefined_share > 0.01 or one.status == "ok"


def test_a_clear_gap_is_ok_and_a_reversed_one_undefined() -> None:
    given = answers()
    assert paired_bootstrap(given).pgr["student"].status == "ok"
    assert paired_bootstrap(given).pgr["student"].undefined_share == 0
    reversed_ = given | {"supervisor": given["ceiling"], "ceiling": given["supervisor"]}
    one = paired_bootstrap(reversed_).pgr["student"]
    assert (one.status, one.value, one.lo, one.hi, one.undefined_share) == ("undefined", None, None, None, 1)


def test_without_a_ceiling_there_are_accuracies_only() -> None:
    found = paired_bootstrap(answers(supervisor=0.7, student=0.8))
    assert set(found.accuracy) == {"supervisor", "student"} and found.pgr == {}


def test_answers_that_do_not_pair_are_refused() -> None:
    given = answers()
    for wrong in (
        {},
        {"a": []},
        given | {"student": given["student"][:2]},
        given | {"student": [a[:-1] for a in given["student"]]},
        given | {"student": [a * 0.5 for a in given["student"]]},
    ):
        with pytest.raises(DataError):
            paired_bootstrap(wrong)
    uneven = {name: [a[0], a[1][:-1]] for name, a in given.items()}
    assert paired_bootstrap(uneven).pgr["student"].n_test == 399
    with pytest.raises(DataError, match="same_rows"):
        paired_bootstrap(uneven, same_rows=True)

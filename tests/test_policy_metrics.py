"""Metrics of policies against counts, exhaustive sums, closed forms, and what intervals must keep."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.errors import DataError
from trimtab.metrics import paired_bootstrap
from trimtab.policy_metrics import (
    best_of_n,
    best_of_n_kl,
    better_in_both_orders,
    kl_estimates,
    paired_means,
    preferred,
    reweighted,
    win_rate,
)

Values = dict[str, list[NDArray[np.float64]]]


def test_wins_are_counted_over_both_orders() -> None:
    found = win_rate(shown_first=[0.9, 0.8, 0.3, 1.0], shown_second=[0.2, 0.7, 0.6, 1.0])
    assert found.probability == pytest.approx((0.85 + 0.55 + 0.35 + 0.5) / 4)
    assert (found.rate, found.ties, found.inconsistent) == (2.5 / 4, 1 / 4, 2 / 4)


def test_a_judge_of_places_sees_ties_only() -> None:
    for always in (0.0, 0.8, 1.0):
        found = win_rate([always] * 5, [always] * 5)
        assert astuple(found) == pytest.approx((0.5, 1, 0.5, 1))


def test_an_undecided_judge_contradicts_nobody() -> None:
    assert astuple(win_rate([0.5, 0.5], [0.5, 0.25])) == (0.75, 0.5, 0.5625, 0)


def test_two_models_share_the_wins() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30, 4))
    ours, theirs = win_rate(first, second), win_rate(second, first)
    assert (ours.rate + theirs.rate, ours.probability + theirs.probability) == pytest.approx((1, 1))
    assert (ours.ties, ours.inconsistent) == (theirs.ties, theirs.inconsistent)
    assert preferred(better_in_both_orders(first, second)).shape == (30, 4)


def test_no_verdict_but_a_probability_counts() -> None:
    for wrong in (([1.5], [0.5]), ([0.5], [-0.1]), ([0.5, math.nan], [0.5, 0.5]), ([0.5], [0.5, 0.5]), ([], [])):
        with pytest.raises(DataError):
            win_rate(*wrong)


def exhaustive(reward_K: NDArray[np.float64], rank_by_K: NDArray[np.float64], n: int) -> float:
    """Mean over all n-subsets; equal ranks share."""
    found = []
    for subset in combinations(range(len(reward_K)), n):
        top = max(rank_by_K[list(subset)])
        found.append(np.mean([reward_K[i] for i in subset if rank_by_K[i] == top]))
    return float(np.mean(found))


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    reward = np.random.default_rng(0).normal(size=(3, 6))
    found = best_of_n(reward)
    for n in range(1, 7):
        assert found.reward_K[n - 1] == pytest.approx(np.mean([exhaustive(row, row, n) for row in reward]))
    assert found.n_K.tolist() == [1, 2, 3, 4, 5, 6]
    assert (found.reward_K[0], found.reward_K[-1]) == pytest.approx((reward.mean(), reward.max(-1).mean()))
    assert found.error_K[0] == pytest.approx(reward.mean(-1).std(ddof=1) / math.sqrt(3))


def test_another_score_may_choose_and_ties_are_broken_at_random() -> None:
    rng = np.random.default_rng(1)
    gold, proxy = rng.normal(size=(2, 5)), rng.integers(0, 3, (2, 5)).astype(float)
    found = best_of_n(gold, proxy).reward_K
    for n in range(1, 6):
        assert found[n - 1] == pytest.approx(np.mean([exhaustive(*rows, n) for rows in zip(gold, proxy, strict=True)]))
    assert best_of_n(gold, np.ones((2, 5))).reward_K == pytest.approx([gold.mean()] * 5)
    assert best_of_n(gold, -gold).reward_K[-1] == pytest.approx(gold.min(-1).mean())


def test_best_of_n_is_unbiased_and_many_samples_are_no_burden() -> None:
    reward = np.random.default_rng(2).random((4000, 8))
    found = best_of_n(reward)
    wanted = found.n_K / (found.n_K + 1)
    assert (np.abs(found.reward_K - wanted) < 4 * found.error_K).all()
    assert best_of_n(np.arange(200.0)[None]).reward_K[1] == pytest.approx(2 / 3 * 201 - 1)


def test_best_of_n_s_divergence() -> None:
    assert best_of_n_kl([1, 2, 4, 16]) == pytest.approx(
        [0, math.log(2) - 1 / 2, math.log(4) - 3 / 4, math.log(16) - 15 / 16]
    )
    assert best_of_n([[1.0, 2.0]]).kl_K == pytest.approx([0, 0.193147], abs=1e-6)


def test_best_of_n_needs_prompts_by_samples() -> None:
    for wrong in (([1.0, 2.0],), ([[1.0, 2.0]], [[1.0]]), ([[]],)):
        with pytest.raises(DataError):
            best_of_n(*wrong)


def test_divergences_by_hand() -> None:
    found = kl_estimates([[-1.0, -0.5], [-2.0]], [[-1.5, -0.25], [-1.0]])
    assert found.k1 == pytest.approx((0.25 - 1) / 2)
    k3 = (math.exp(-0.5) - 1 + 0.5) + (math.exp(0.25) - 1 - 0.25), math.exp(1) - 1 - 1
    assert found.k3 == pytest.approx(sum(k3) / 2)
    assert found.k1_error == pytest.approx(1.25 / 2) and found.k3_error == pytest.approx(abs(k3[0] - k3[1]) / 2)
    assert found.sequences == 2
    assert kl_estimates([[-1.0]] * 3, [[-1.0]] * 3).k3 == 0


def test_both_estimates_find_the_divergence_of_two_chains() -> None:
    rng = np.random.default_rng(3)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    drawn = rng.choice(3, p=p, size=(4000, 5))
    found = kl_estimates(list(np.log(p)[drawn]), list(np.log(q)[drawn]))
    true = 5 * float((p * np.log(p / q)).sum())
    assert abs(found.k1 - true) < 4 * found.k1_error and abs(found.k3 - true) < 4 * found.k3_error
    assert 0 < found.k3_error < found.k1_error / 3


def test_samples_of_a_prompt_are_one_draw() -> None:
    policy, reference = [[-1.0]] * 4, [[-2.0], [-2.0], [-4.0], [-4.0]]
    apart, together = kl_estimates(policy, reference), kl_estimates(policy, reference, prompts=["a", "a", "b", "b"])
    assert apart.k1 == together.k1 == 2
    assert together.k1_error == pytest.approx(1)
    assert apart.k1_error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(kl_estimates(policy, reference, prompts=["a"] * 4).k1_error)


def test_sequences_that_do_not_match_are_refused() -> None:
    for wrong in (([[-1.0]], []), ([], []), ([[-1.0]], [[-1.0, -2.0]])):
        with pytest.raises(DataError):
            kl_estimates(*wrong)
    with pytest.raises(DataError):
        kl_estimates([[-1.0]], [[-1.0]], prompts=["a", "b"])


def rewards(prompts: int = 300, seeds: int = 3, seed: int = 0, **means: float) -> Values:
    rng = np.random.default_rng(seed)
    means = means or {"supervisor": 0.0, "student": 0.5, "ceiling": 1.0}
    prompt = [rng.normal(size=prompts) * 3 for _ in range(seeds)]
    return {name: [mean + x + 0.3 * rng.normal(size=prompts) for x in prompt] for name, mean in means.items()}


def test_rewards_have_means_differences_and_pgr() -> None:
    given = rewards()
    found = paired_means(given, base="supervisor")
    mean = {name: float(np.mean(values)) for name, values in given.items()}
    assert {name: one.mean for name, one in found.mean.items()} == pytest.approx(mean)
    assert set(found.difference) == {"student", "ceiling"}
    assert found.difference["student"].mean == pytest.approx(mean["student"] - mean["supervisor"])
    gap = (mean["student"] - mean["supervisor"]) / (mean["ceiling"] - mean["supervisor"])
    one = found.pgr["student"]
    assert (one.value, one.status, one.n_test, one.seeds) == (pytest.approx(gap), "ok", 300, 3)
    assert one.lo < gap < one.hi


def test_pairing_makes_differences_sharper_than_means() -> None:
    found = paired_means(rewards(), base="supervisor")
    difference, mean = found.difference["student"], found.mean["student"]
    assert difference.hi - difference.lo < (mean.hi - mean.lo) / 3
    assert difference.lo > 0


@pytest.mark.parametrize("same_rows", [False, True])
def test_zeros_and_ones_give_what_accuracies_give(same_rows: bool) -> None:
    rng = np.random.default_rng(4)
    given = {
        name: [rng.random(200) < rate for _ in range(2)]
        for name, rate in zip(("supervisor", "s", "ceiling"), (0.6, 0.7, 0.8), strict=True)
    }
    found, known = paired_means(given, same_rows=same_rows), paired_bootstrap(given, same_rows=same_rows)
    assert (found.mean, found.pgr) == (known.accuracy, known.pgr)


def test_identical_models_differ_by_nothing() -> None:
    given = rewards()
    given |= {"twin": given["student"], "like_supervisor": given["supervisor"]}
    found = paired_means(given, base="student")
    assert (found.difference["twin"].lo, found.difference["twin"].hi) == (0, 0)
    assert found.pgr["twin"] == found.pgr["student"]
    assert (found.pgr["like_supervisor"].lo, found.pgr["like_supervisor"].hi) == (0, 0)


def test_units_and_offsets_of_rewards_leave_pgr_alone() -> None:
    given = rewards()
    other = {name: [10 * x_N - 7 for x_N in values] for name, values in given.items()}
    ours, theirs = paired_means(given).pgr["student"], paired_means(other).pgr["student"]
    assert (ours.value, ours.lo, ours.hi) == pytest.approx((theirs.value, theirs.lo, theirs.hi))


def test_the_ends_may_have_other_names() -> None:
    given = rewards()
    renamed = {"weak": given["supervisor"], "dpo": given["student"], "strong": given["ceiling"]}
    assert paired_means(renamed).pgr == {}
    assert paired_means(renamed, ends=("weak", "strong")).pgr["dpo"] == paired_means(given).pgr["student"]


def test_a_gap_may_be_uncertain_or_missing() -> None:
    status = {
        paired_means(rewards(50, 2, s, supervisor=0, student=0, ceiling=0)).pgr["student"].status for s in range(8)
    }
    assert {"uninformative", "undefined"} <= status
    reversed_ = paired_means(rewards(supervisor=1, student=0.5, ceiling=0)).pgr["student"]
    assert (reversed_.status, reversed_.value, reversed_.lo) == ("undefined", None, None)


def test_intervals_of_a_mean_match_the_normal_ones() -> None:
    given = rewards(400, 1)
    found = paired_means(given, resamples=4000).mean["student"]
    spread = 1.96 * np.std(given["student"][0]) / math.sqrt(400)
    assert (found.hi - found.lo) / 2 == pytest.approx(spread, rel=0.07)


def test_values_that_do_not_pair_are_refused() -> None:
    given = rewards()
    for wrong in (
        {},
        given | {"student": given["student"][:2]},
        given | {"student": [x[:-1] for x in given["student"]]},
    ):
        with pytest.raises(DataError, match="same seeds"):
            paired_means(wrong)
    given["student"][0][3] = math.nan
    with pytest.raises(DataError, match="finite"):
        paired_means(given)
    with pytest.raises(DataError, match="'teacher'"):
        paired_means(rewards(), base="teacher")


def test_weights_of_completions_are_those_made_by_hand() -> None:
    found = reweighted(np.log([1.0, 3.0, 4.0]), [0.8, -0.4, 0.1])
    assert found.mean == pytest.approx((0.8 - 1.2 + 0.4) / 8)
    assert found.kl == pytest.approx(sum(w / 8 * math.log(3 * w / 8) for w in (1, 3, 4)))
    assert found.effective == pytest.approx(64 / 26)
    assert reweighted([0.0, 1.0]).mean is None


def test_equal_weights_change_nothing_and_one_weight_decides_alone() -> None:
    plain = reweighted([0.0] * 5, [1, 2, 3, 4, 10])
    assert astuple(plain) == pytest.approx((4, 0, 5))
    assert astuple(reweighted([-700.0] * 5, [1, 2, 3, 4, 10])) == pytest.approx((4, 0, 5)), "no weight underflows"
    alone = reweighted([900.0, 0.0, 1.0], [7, 1, 2])
    assert astuple(alone) == pytest.approx((7, math.log(3), 1))


def test_many_weighted_draws_give_the_other_distribution_s_mean_and_distance() -> None:
    p, q, value = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), np.array([-1.0, 0.5, 2.0])
    drawn = np.random.default_rng(0).choice(3, 40_000, p=p)
    found = reweighted(np.log(q / p)[drawn], value[drawn])
    assert found.mean == pytest.approx(q @ value, abs=0.03)
    assert found.kl == pytest.approx(q @ np.log(q / p), abs=0.03)
    assert found.effective / 40_000 == pytest.approx(1 / (q @ (q / p)), abs=0.01)


def test_weights_and_values_have_to_match() -> None:
    with pytest.raises(DataError, match="they must be equal and not empty"):
        reweighted([0.0, 1.0], [1.0])
    with pytest.raises(DataError, match="there are no completions"):
        reweighted([])

"""Panels in numbers: two judges who agree, two who do not, and one who is sure."""

from __future__ import annotations

import pytest
import torch

from trimtab.methods.panels.bayes import Bayes
from trimtab.methods.panels.mean import Mean
from trimtab.methods.panels.vote import Vote

PROBS_JNC = torch.tensor(
    [[[0.2, 0.8], [0.4, 0.6]], [[0.2, 0.8], [0.45, 0.55]], [[0.2, 0.8], [0.99, 0.01]]], dtype=torch.float64
)


def second(panel, probs_JNC=PROBS_JNC):
    probs_NC = panel(probs_JNC)
    assert probs_NC.sum(-1).tolist() == pytest.approx([1] * len(probs_NC))
    return probs_NC[:, 1].tolist()


def test_the_mean_counts_how_sure_each_is():
    assert second(Mean()) == pytest.approx([0.8, 1.16 / 3])


def test_a_vote_counts_heads_and_the_mean_decides_where_it_ties():
    assert second(Vote()) == pytest.approx([1.0, 2 / 3])
    assert second(Vote(), PROBS_JNC[1:]) == pytest.approx([1.0, 0.28])


def test_independent_judges_who_agree_are_surer_together():
    assert second(Bayes())[0] == pytest.approx(0.8**3 / (0.8**3 + 0.2**3))
    odds = (0.6 / 0.4) * (0.55 / 0.45) * (0.01 / 0.99)
    assert second(Bayes())[1] == pytest.approx(odds / (1 + odds))
    assert second(Bayes(weight=1 / 3))[0] == pytest.approx(0.8)


def test_no_judge_alone_rules_a_class_out_for_good():
    probs_JNC = torch.tensor([[[1.0, 0.0]], [[1e-9, 1 - 1e-9]]], dtype=torch.float64)
    assert second(Bayes(), probs_JNC)[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("panel", [Mean(), Vote(), Bayes()], ids=lambda p: p.kind)
def test_a_panel_of_one_says_what_it_says_and_the_order_of_judges_does_not_count(panel):
    assert second(panel, PROBS_JNC[:1].round()) == pytest.approx([1, 1], abs=1e-5)
    assert second(panel, PROBS_JNC.flip(0)) == pytest.approx(second(panel))

"""Debates by scripted models in the real decoder, judged by a scripted judge who can check quotes and nothing else."""

from __future__ import annotations

import math
import random
import re
from functools import cache

import pytest
from tests.debating import END, SIZE, Words, floor, hold, scripted
from tests.decoding import ScriptedStepper

from trimtab.errors import ModelError, StageError
from trimtab.lm import ScriptedLM
from trimtab.methods.debates._base import Case, render
from trimtab.methods.debates._wording import read_wording
from trimtab.methods.debates.consultancy import Consultancy
from trimtab.methods.debates.sequential import Sequential
from trimtab.methods.debates.simultaneous import Simultaneous
from trimtab.models.debating import Brief, Floor, Judge
from trimtab.models.decode import Decoder

WORDING = read_wording(None)


def world(count: int = 40) -> list[tuple[Case, int]]:
    """Who came on a day? The text that only debaters see says so; the place of the right answer is drawn."""
    found = []
    for day in range(count):
        truth = random.Random(day).randrange(2)
        names = (f"ann{day}", f"bob{day}")
        source = f"On day {day} it rained and {names[truth]} came home ."
        found.append((Case(f"c{day}", f"Who came on day {day} ?", names, source), truth))
    return found


def quoting(read: str) -> list[str]:
    """Both debaters claim alike that the text speaks for their answer; one of them can be caught."""
    own = re.search(r'the answer is " (\w+) " and not', read)[1]
    return [*f"The answer is {own} , because".split(), "<quote>", own, "came", "home", "</quote>"]


def checking(words: Words) -> ScriptedLM:
    """A judge who likes the first place, but believes who is quoted with a mark of verification."""

    def rule(context: tuple[int, ...]) -> list[float]:
        read = words.decode(list(context))
        first, second = (re.search(rf"\n {label} : (\w+) \n", read)[1] for label in "AB")
        quoted = set(re.findall(r"<v_quote> (\w+) came", read))
        p = 0.75 if (first in quoted) == (second in quoted) else 0.96 if first in quoted else 0.04
        logprobs = [-math.inf] * SIZE
        logprobs[words.encode("A")[0]], logprobs[words.encode("B")[0]] = math.log(p), math.log(1 - p)
        return logprobs

    return ScriptedLM(rule, end_ids=frozenset({END}))


def accuracy(verdicts, cases) -> float:
    """Cases decided rightly; an even verdict is half right."""
    right = [verdict.probabilities[truth] for verdict, (_, truth) in zip(verdicts, cases, strict=True)]
    return sum(1.0 if p > 0.5 + 1e-6 else 0.5 if p > 0.5 - 1e-6 else 0.0 for p in right) / len(right)


@pytest.mark.parametrize("protocol", [Sequential(turns=1), Simultaneous(turns=2)], ids=lambda p: p.kind)
def test_checkable_quotes_lift_a_weak_judge_from_chance_and_strangers_words_do_not(protocol):
    cases, words = world(), Words()
    held = hold(protocol, [case for case, _ in cases], quoting, words=words)
    said = [render(one.transcript, WORDING) for one in held]
    judge = Judge(checking(words), words, WORDING)
    alone, heard, strangers = (
        judge([Brief(case, text) for (case, _), text in zip(cases, texts, strict=True)])
        for texts in ([""] * len(cases), said, said[1:] + said[:1])
    )
    assert accuracy(alone, cases) == pytest.approx(0.5)
    assert accuracy(heard, cases) > 0.9
    assert accuracy(strangers, cases) == pytest.approx(0.5)
    assert {round(one.place_bias, 3) for one in alone} == {0.5}
    assert {round(one.place_bias, 3) for one in heard} == {0.0}


def test_one_sided_advice_helps_only_where_the_adviser_can_be_caught():
    """An adviser for the wrong answer has no verified quote: this judge takes that for nothing, and is at chance."""
    cases, words = world(), Words()
    held = hold(Consultancy(turns=1), [case for case, _ in cases], quoting, words=words)
    briefs = [Brief(one.transcript.case, render(one.transcript, WORDING)) for one in held]
    verdicts = Judge(checking(words), words, WORDING)(briefs)
    honest = [one.transcript.order[0] == truth for one, (_, truth) in zip(held, cases, strict=True)]
    for side, expected in ((True, 1.0), (False, 0.5)):
        chosen = [i for i, one in enumerate(honest) if one is side]
        assert accuracy([verdicts[i] for i in chosen], [cases[i] for i in chosen]) == pytest.approx(expected)


def drawing(words: Words) -> ScriptedLM:
    """Words drawn at random, by the last two tokens."""

    @cache
    def after(last: tuple[int, ...]) -> list[float]:
        draw = random.Random(f"{last}")
        weights = [draw.random() if i == END or 200 < i < 230 else 0.0 for i in range(SIZE)]
        total = sum(weights)
        return [math.log(w / total) if w else -math.inf for w in weights]

    for i in range(SIZE - 2):
        words.encode(f"w{i}")
    return ScriptedLM(lambda context: after(context[-2:]), end_ids=frozenset({END}))


def drawn(protocol, cases, *, seed=0, slots=8):
    words = Words()
    stepper = ScriptedStepper(drawing(words), slots, context=1000)
    decoder = Decoder([stepper], ends=[frozenset({END})], vocabulary=SIZE)
    held = Floor(decoder, words).hold(protocol, [protocol.begin(case) for case in cases], seed=seed)
    return [one.transcript for one in held], held


@pytest.mark.parametrize(
    "protocol", [Sequential(turns=2, words=9), Simultaneous(turns=2, words=9)], ids=lambda p: p.kind
)
def test_a_debate_hangs_on_its_seed_and_on_nothing_beside_it(protocol):
    cases = [Case(f"c{i}", "w9 w8", (f"w{i}", f"w{i + 50}")) for i in range(5)]
    whole, held = drawn(protocol, cases)
    alone = [drawn(protocol, [case], slots=2)[0][0] for case in cases]
    assert whole == alone
    other, _ = drawn(protocol, cases, seed=1)
    assert all(a.turns != b.turns for a, b in zip(whole, other, strict=True))
    assert len({turn.text for one in whole for turn in one.turns}) > 15
    turns = [each for one in held for each in zip(one.transcript.turns, one.costs, strict=True) if not each[0].cut]
    assert turns
    for turn, cost in turns:
        start = "The answer is w0, because"
        assert cost.tokens - cost.ended == len(turn.text.split()) - len(start.split())


def test_a_turn_that_a_model_does_not_end_is_bounded():
    (one,) = hold(Sequential(turns=1, words=4), [Case("c", "q", ("a", "b"))], lambda read: ["more"] * 50)
    assert [cost.tokens for cost in one.costs] == [6, 6]
    assert [cost.ended for cost in one.costs] == [False, False]
    assert all(turn.cut for turn in one.transcript.turns)


def test_what_both_have_read_is_not_read_again():
    words, case = Words(), Case("c", "w " * 60, ("a", "b"))
    place = floor(words, lambda read: ["yes"])
    protocol = Sequential(turns=3)
    (one,) = place.hold(protocol, [protocol.begin(case)], seed=0)
    assert sum(cost.prompt_tokens for cost in one.costs) > 6 * 100
    assert place.decoder.tokens[0] < 0.6 * sum(cost.prompt_tokens for cost in one.costs)
    place.forget()
    assert not any(place.decoder.models[0].held)


def test_labels_that_begin_alike_and_logits_that_are_no_numbers_are_refused():
    words = Words()
    lm = scripted(words, lambda read: ["A"])
    with pytest.raises(ModelError, match="begin with the same token"):
        Judge(lm, words, WORDING.model_copy(update={"judge_labels": ("first 1", "first 2")}))
    with pytest.raises(StageError, match="not finite"):
        Judge(lm, words, WORDING)([Brief(Case("c", "q", ("a", "b")), "")])

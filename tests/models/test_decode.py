"""The decoding loop: rows beside each other are as rows alone, whatever their guides, lengths and order of coming."""

from __future__ import annotations

import math

import pytest
import torch
from tests.decoding import END, Mean, ScriptedStepper, Sum, decoder, mixed, plain, random_lm, run, tiny_llama

from trimtab.alignment import Sampling
from trimtab.errors import ModelError, StageError
from trimtab.lm import ScriptedLM, weighed
from trimtab.methods.guides._base import Guide
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.llama import LlamaStepper
from trimtab.models.speculation import Pace


def test_rows_beside_each_other_are_as_rows_alone() -> None:
    together = run(decoder(chunk=5), mixed())
    alone = [run(decoder(), [one])[0] for one in mixed()]
    assert [plain(told) for told in together] == [plain(told) for told in alone]
    assert all(told[-1].finish and not any(one.finish for one in told[:-1]) for told in together)


def test_rows_may_come_at_any_step() -> None:
    engine, asked, told = decoder(slots=2), mixed(), {}
    tickets = []
    while engine.busy or asked:
        if asked:
            tickets.append(engine.add(asked.pop(0)))
        for one in engine.step():
            told.setdefault(one.ticket, []).append(one)
    assert [plain(told[t]) for t in tickets] == [plain(run(decoder(), [one])[0]) for one in mixed()]


def test_no_guide_is_the_base_itself_and_its_helpers_do_not_run() -> None:
    engine = decoder()
    asked = Asked(([1, 2], [1, 2]), Sampling(max_new_tokens=9), seed=3)
    (told,) = run(engine, [asked])
    base = random_lm(0).generate([[1, 2]], Sampling(max_new_tokens=9), [3])[0]
    assert [one.id for one in told] == base.ids
    assert [one.logprob for one in told] == pytest.approx(base.logprobs, abs=1e-5)
    assert engine.models[1].reads == []
    run(engine, [Asked(([1, 2], [1, 2]), Sampling(max_new_tokens=3), seed=3, guide=Sum(alpha=0))])
    assert engine.models[1].reads == []


def test_the_fused_log_prob_is_what_the_guide_says() -> None:
    (told,) = run(decoder(), [Asked(([1, 2], [3]), Sampling(max_new_tokens=1), seed=0, guide=Sum(alpha=2.0), tell=6)])
    base, helper = random_lm(0).next_logprobs([[1, 2]])[0], random_lm(1).next_logprobs([[3]])[0]
    fused = (base + 2 * helper).log_softmax(-1)
    (one,) = told
    assert dict(one.likeliest) == pytest.approx(dict(enumerate(fused.tolist())), abs=1e-5)
    assert [value for _, value in one.likeliest] == sorted((value for _, value in one.likeliest), reverse=True)
    assert one.said == pytest.approx((float(base[one.id]), float(helper[one.id])), abs=1e-5)
    assert (one.logprob, one.weights) == (pytest.approx(float(fused[one.id]), abs=1e-5), (1.0, 2.0))


def test_a_prompt_that_begins_like_what_was_read_is_read_from_there() -> None:
    engine = decoder(models=1)
    long = [1, 2, 3, 4, 5, 4, 3, 2, 1, 2, 3, 4]
    sampling = Sampling(max_new_tokens=2, temperature=0)
    many = run(engine, [Asked((long,), sampling, seed=i) for i in range(3)])
    assert len({tuple(one.id for one in told) for told in many}) == 1
    read = [n for rows in engine.models[0].reads for _, n in rows if n > 1]
    assert read == [12]
    run(engine, [Asked(([*long[:10], 1, 1],), sampling, seed=0)])
    assert [n for rows in engine.models[0].reads for _, n in rows if n > 1] == [12, 2]


def test_a_dropped_row_leaves_its_slot_and_nobody_notices() -> None:
    engine = decoder(slots=2, chunk=4)
    asked = mixed()[3:6]
    tickets = [engine.add(one) for one in asked]
    told: dict[int, list[Told]] = {ticket: [] for ticket in tickets}
    for step in range(200):
        if step == 3:
            engine.drop(tickets[0])
        if not engine.busy:
            break
        for one in engine.step():
            told[one.ticket].append(one)
    for ticket, one in zip(tickets[1:], asked[1:], strict=True):
        assert plain(told[ticket]) == plain(run(decoder(), [one])[0])
    assert engine.free == [0, 1]
    waiting = engine.add(asked[0])
    engine.drop(waiting)
    assert not engine.busy


def test_models_that_end_with_other_tokens_have_one_end() -> None:
    base = ScriptedLM(lambda context: [math.log(p) for p in (0.2, 0.1, 0.3, 0.4)], end_ids=frozenset({0, 1}))
    helper = ScriptedLM(lambda context: [math.log(p) for p in (0.1, 0.2, 0.2, 0.5)], end_ids=frozenset({3}))
    engine = Decoder(
        [ScriptedStepper(base), ScriptedStepper(helper)], ends=[base.end_ids, helper.end_ids], vocabulary=4
    )
    (told,) = run(engine, [Asked(([1], [1]), Sampling(max_new_tokens=1), seed=0, guide=Sum(), tell=4)])
    weights = {0: 0.3 * 0.5, 2: 0.3 * 0.2}
    found = {i: math.exp(value) for i, value in told[0].likeliest}
    assert found == pytest.approx({i: weights.get(i, 0) / sum(weights.values()) for i in range(4)}, abs=1e-5)


def test_bias_and_penalties_change_the_draw_and_not_what_is_told() -> None:
    usual = Asked(([1], [1]), Sampling(max_new_tokens=6, temperature=0), seed=0, tell=6)
    (told,) = run(decoder(), [Asked(**vars(usual) | {"bias": {5: 100.0}})])
    assert [one.id for one in told] == [5] * 6
    assert all(math.exp(one.logprob) < 0.999 for one in told)
    (told,) = run(decoder(), [Asked(**vars(usual) | {"presence": 50.0, "bias": {END: -100.0}})])
    assert len({one.id for one in told[:5]}) == 5


def test_what_cannot_be_done_is_refused_at_once() -> None:
    engine, sampling = decoder(), Sampling(max_new_tokens=4)
    with pytest.raises(ModelError, match="64 tokens; the ensemble reads less than 64"):
        engine.add(Asked(([1] * 64, [1]), sampling, seed=0))
    with pytest.raises(ModelError, match="no token"):
        engine.add(Asked(([], [1]), sampling, seed=0))
    with pytest.raises(ModelError, match="1 prompts for 2 models"):
        engine.add(Asked(([1],), sampling, seed=0))
    with pytest.raises(StageError, match="at least 1 helpers"):
        decoder(models=1).add(Asked(([1],), sampling, seed=0, guide=Sum()))
    assert not engine.busy
    (told,) = run(engine, [Asked(([1] * 62, [1]), Sampling(max_new_tokens=9), seed=0)])
    assert len(told) == 2 or told[-1].finish == "stop"


@pytest.mark.slow
def test_real_networks_side_by_side_are_as_alone() -> None:
    models = [tiny_llama(0), tiny_llama(1, layers=1)]

    def fresh() -> Decoder:
        steppers = [LlamaStepper(model, 3, 100) for model in models]
        return Decoder(steppers, ends=[frozenset({END})] * 2, vocabulary=50, chunk=7)

    together = run(fresh(), mixed())
    alone = [run(fresh(), [one])[0] for one in mixed()]
    for ours, theirs in zip(together, alone, strict=True):
        assert [one.id for one in ours] == [one.id for one in theirs]
        assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=1e-4)


def test_given_tokens_are_told_with_their_log_probs_and_gone_on_from() -> None:
    forced = tuple(1 + i % 5 for i in range(70))
    steppers = [ScriptedStepper(random_lm(m), 2, 200) for m in range(2)]
    engine = Decoder(steppers, ends=[frozenset({END})] * 2, vocabulary=6)
    sampling = Sampling(max_new_tokens=3)
    scored, further = run(
        engine,
        [
            Asked(([1, 2], [3]), sampling, seed=0, guide=Sum(), forced=forced, score_only=True),
            Asked(([1, 2], [3]), sampling, seed=0, guide=Sum(), forced=forced[:2]),
        ],
    )
    assert [one.id for one in scored] == list(forced)
    for i in (0, 1, 63, 64, 69):
        base = random_lm(0).next_logprobs([[1, 2, *forced[:i]]])[0]
        helper = random_lm(1).next_logprobs([[3, *forced[:i]]])[0]
        assert scored[i].logprob == pytest.approx(float((base + helper).log_softmax(-1)[forced[i]]), abs=1e-5)
    assert [one.finish for one in scored[:-1]] == [None] * 69
    assert plain(further[:2]) == plain(scored[:2])
    assert 3 <= len(further) <= 5
    longest = max(n for rows in engine.models[0].reads for _, n in rows)
    assert longest == 63


class Always(Pace):
    """Drafts the same number always."""

    drafts = 3

    def count(self, helper: int, others: list[int]) -> int:
        return self.drafts if all(self.seconds) else 0


def speculating(guide: Guide, sampling: Sampling, seeds: range) -> tuple[list[list[Told]], Decoder]:
    engine = decoder(slots=4)
    engine.pace = Always(2)
    asked = [Asked(([1, 2], [2]), sampling, seed=seed, guide=guide, draft=1) for seed in seeds]
    return run(engine, asked), engine


def test_drafts_change_no_greedy_answer() -> None:
    sampling = Sampling(max_new_tokens=12, temperature=0)
    for guide in (Sum(), Mean(), Sum(alpha=3.0)):
        told, engine = speculating(guide, sampling, range(3))
        (usual,) = run(decoder(), [Asked(([1, 2], [2]), sampling, seed=0, guide=guide)])
        assert [plain(one) for one in told] == [plain(usual)] * 3
        assert 0 < engine.pace.accepted <= engine.pace.drafted
    assert any(one.drafted for one in told[0])


@pytest.mark.slow
@pytest.mark.parametrize("guide", [Sum(), Mean()], ids=["linear", "mixture"])
def test_drafts_leave_the_distribution_as_it_is(guide: Guide) -> None:
    """Chi-square of 3,000 sequences of three tokens against the fused chain."""
    sampling = Sampling(max_new_tokens=4, temperature=0.8, top_k=4)
    told, engine = speculating(guide, sampling, range(3000))
    assert engine.pace.drafted > 2000
    counts: dict[tuple[int, ...], int] = {}
    for one in told:
        key = tuple(each.id for each in one[:3])
        counts[key] = counts.get(key, 0) + 1
    expected: dict[tuple[int, ...], float] = {}

    def spread(so_far: tuple[int, ...], chance: float) -> None:
        if len(so_far) == 3 or (so_far and so_far[-1] == END):
            expected[so_far] = chance
            return
        lms = [random_lm(0), random_lm(1)]
        said = torch.stack([lm.next_logprobs([[*p, *so_far]]) for lm, p in zip(lms, ([1, 2], [2]), strict=True)])
        weights_V = weighed(guide(said).logprobs_BV, sampling)[0, :6]
        for token, weight in enumerate((weights_V / weights_V.sum()).tolist()):
            if weight:
                spread((*so_far, token), chance * weight)

    spread((), 1.0)
    assert set(counts) <= set(expected)
    common = [key for key, chance in expected.items() if chance * 3000 >= 5]
    rest = 3000 - sum(counts.get(key, 0) for key in common), 3000 * (1 - sum(expected[key] for key in common))
    chi = sum((counts.get(key, 0) - 3000 * expected[key]) ** 2 / (3000 * expected[key]) for key in common)
    chi += (rest[0] - rest[1]) ** 2 / rest[1] if rest[1] > 5 else 0
    degrees = len(common)
    assert chi < degrees + 4 * math.sqrt(2 * degrees)


def test_what_is_rejected_leaves_no_trace() -> None:
    engine = decoder(slots=1)
    engine.pace = Always(2)
    asked = Asked(([1, 2], [2]), Sampling(max_new_tokens=30), seed=5, guide=Sum(alpha=0.1), draft=1, bias={END: -50.0})
    ticket = engine.add(asked)
    while engine.busy:
        engine.step()
        if ticket in engine.rows and engine.rows[ticket].logits_MV is None:
            row = engine.rows[ticket]
            for model, prompt in zip(engine.models, asked.prompts, strict=True):
                assert model.held[0] == prompt + row.drawn[:-1]
    assert engine.pace.accepted < engine.pace.drafted


def test_drafting_is_chosen_where_it_is_faster() -> None:
    pace = Pace(2)
    assert pace.count(1, [0]) == 0
    for _ in range(50):
        pace.read(0, 0.1)
        pace.read(1, 0.01)
    assert pace.count(1, [0]) >= 4
    pace.burst(400, 40, 1.2)
    assert pace.acceptance == pytest.approx(0.1, abs=0.01)
    assert [pace.count(1, [0]) for _ in range(3)] in ([0, 0, 0], [1, 1, 1])
    dear = Pace(2)
    dear.acceptance = 0.4
    dear.read(0, 0.1)
    dear.read(1, 0.1)
    counts = [dear.count(1, [0]) for _ in range(64)]
    assert counts[:63] == [0] * 63
    assert counts[63] == 2


def test_prompts_that_begin_alike_wait_for_each_other_only_for_what_nobody_has_read() -> None:
    one = decoder(models=1, slots=3)
    reads, begin, more = one.models[0].reads, [1, 2, 3, 4, 5] * 2, [5, 4, 3, 2, 1] * 2
    ask = [Asked((begin + [i] + more,), Sampling(max_new_tokens=1), 0) for i in (1, 2, 3)]
    run(one, ask)
    assert [len(read) for read in reads] == [1, 2], "two wait until the first has read what all share"
    reads.clear()
    run(one, ask)
    assert len(reads[0]) == 3, "what they share is known"

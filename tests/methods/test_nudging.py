"""Nudging with writers that follow a script.

What the scenarios come to was found by running the authors' code on such writers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from trimtab.methods.guides._nudging import End, Piece, Token, Window, Writer, cut
from trimtab.methods.guides.nudging import Nudging, said, trimmed

STOP = ("", 1.0)
"""Stands in a script where the writer ends its answer."""
Said = tuple[str, float]


class Script:
    """A Writer that knows what follows some texts, and goes on from there; `otherwise` it says one thing only."""

    def __init__(self, scripts: dict[str, Sequence[Said]], otherwise: Sequence[Said] = ()) -> None:
        self.scripts, self.otherwise = scripts, otherwise
        self.windows = self.firsts = 0

    def write(self, text: str, most: int) -> Window:
        self.windows += 1
        following = self._after(text)
        until = following.index(STOP) if STOP in following else len(following)
        window = tuple(Token(*one) for one in following[: min(until, most)])
        return Window(window, stopped=until < len(following) and until <= most)

    def first_tokens(self, text: str, words: Sequence[str]) -> Iterator[Token | None]:
        for word in words:
            text += word
            self.firsts += 1
            first = self._after(text)[0]
            yield None if first == STOP else Token(*first)

    def _after(self, text: str) -> Sequence[Said]:
        for start, script in sorted(self.scripts.items(), reverse=True):
            for i in range(len(script)):
                if start + "".join(word for word, _ in script[:i]) == text:
                    return script[i:]
        assert self.otherwise, f"the script says nothing after {text!r}"
        return self.otherwise


def sure(text: str) -> list[Said]:
    """A token for each word, with the space before it, all of probability .9."""
    words = text.split(" ")
    return [(word, 0.9) for word in [words[0], *(f" {word}" for word in words[1:])] if word]


def run(base: Writer, nudger: Writer, guide: Nudging | None = None, *, most: int = 256) -> tuple[list[Piece], End]:
    *pieces, end = (guide or Nudging())(base, nudger, most=most)
    assert isinstance(end, End)
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert end.answer == trimmed("".join(piece.text for piece in pieces))
    return pieces, end


def nudges(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.speaker == "nudger"]


# ---- the scenarios

STEPS = {"": sure(" Let's think step by step.")}


def test_agreement() -> None:
    """The base is unsure of " think" but the nudger says the same; " Hmm" is neither."""
    base = Script({" Let's": [(" think", 0.35), (" it", 0.6), (" over", 0.9), (".", 0.5), (" Hmm", 0.2)]})
    nudger = Script({**STEPS, " Let's think it over.": [*sure(" The answer is 4."), STOP]})
    pieces, end = run(base, nudger)
    assert end == End("nudging_model_stop", "Let's think it over. The answer is 4.")
    assert nudges(pieces) == [" Let's", " The answer is 4."]
    assert [(piece.text, piece.why) for piece in pieces] == [
        (" Let's", "nudge"),
        (" think it over.", "agreed"),
        (" The answer is 4.", "ending"),
    ]
    assert [token.probability for token in pieces[1].tokens] == [0.35, 0.6, 0.9, 0.5]
    assert (base.firsts, base.windows, nudger.windows) == (1, 1, 2)


def test_take_over() -> None:
    base = Script({" Let's": [(" solve", 0.55), (" it", 0.45), (":", 0.41), (" x", 0.39)]})
    nudger = Script({**STEPS, " Let's solve it:": [*sure(" 2+2=4."), STOP]})
    pieces, end = run(base, nudger)
    assert end == End("nudging_model_stop", "Let's solve it: 2+2=4.")
    assert [(piece.text, piece.why) for piece in pieces[:2]] == [(" Let's", "nudge"), (" solve it:", "sure")]


def test_no_acceptance_drops_the_last_word() -> None:
    base = Script({}, otherwise=[(" zzz", 0.1)])
    nudger = Script({"": sure(" Sure here is a po"), " Sure here is a": [*sure(" poem."), STOP]})
    pieces, end = run(base, nudger, Nudging(window=5))
    assert nudges(pieces) == [" Sure here is a", " poem."]
    assert end == End("nudging_model_stop", "Sure here is a poem.")
    assert (base.firsts, base.windows) == (4, 0)


def test_stop() -> None:
    base = Script({})
    pieces, end = run(base, Script({"": [*sure(" Yes."), STOP]}))
    assert end == End("nudging_model_stop", "Yes.")
    assert [(piece.text, piece.why) for piece in pieces] == [(" Yes.", "ending")]
    assert (base.firsts, base.windows) == (0, 0)


def test_the_base_ends() -> None:
    """It is not asked again, and the nudger goes on."""
    base = Script({" Ok": [(" then", 0.8), (".", 0.9), STOP]})
    nudger = Script({"": sure(" Ok so we"), " Ok then.": [*sure(" Done."), STOP]})
    _, end = run(base, nudger)
    assert end == End("nudging_model_stop", "Ok then. Done.")
    assert (base.firsts, base.windows) == (1, 1)


def test_loop() -> None:
    base, nudger = Script({}), Script({}, otherwise=[("na", 0.9)])
    pieces, end = run(base, nudger, Nudging(window=1))
    assert nudges(pieces) == ["na", "na", "na"]
    assert end == End("repeated_nudging_words", "nanana")
    assert (base.firsts, nudger.windows) == (0, 4)


def test_boundary() -> None:
    """A probability of gamma is sure enough; the least bit less is not."""
    base = Script({" A": [(" B", 0.4), (" C", 0.4), (" D", 0.399999)]})
    nudger = Script({"": sure(" A x y"), " A B C": [*sure(" end"), STOP]})
    assert run(base, nudger)[1] == End("nudging_model_stop", "A B C end")


# ---- the nudger's words


@pytest.mark.parametrize(
    ("window", "after", "word"),
    [
        ("One two three", "One", " two"),
        ("  One two three", "  One", " two"),
        (" One  two three", " One ", " two"),
        (" One\ntwo three", " One\ntwo", " three"),
        (" One two  ", " One", " two"),
    ],
)
def test_words_are_parted_by_single_spaces(window: str, after: str, word: str) -> None:
    """The base is asked first behind the first word; a base that agrees takes over there."""
    base = Script({after: [(word, 0.2), (" no", 0.1)]})
    nudger = Script({"": [(window, 0.9)], after + word: [STOP]})
    pieces, _ = run(base, nudger)
    assert [piece.text for piece in pieces] == [after, word]


def test_a_token_that_begins_the_word_agrees_and_one_that_goes_beyond_it_does_not() -> None:
    nudger = Script({"": sure(" One two three"), " One tw": [STOP], " One two": [STOP]})
    assert run(Script({" One": [(" tw", 0.1), ("x", 0.1)]}), nudger)[0][-1].why == "agreed"
    base = Script({" One": [(" two three", 0.1)], " One two": [(" zzz", 0.1)]})
    assert nudges(run(base, nudger)[0]) == [" One two"]
    spaced = Script({"": [(" One two  three", 0.9)], " One two ": [STOP]})
    base = Script({" One": [(" two ", 0.1)], " One two ": [(" zzz", 0.1)]})
    assert nudges(run(base, spaced)[0]) == [" One two "]


@pytest.mark.parametrize(
    ("window", "nudge"),
    [("word", "word"), (" word", " word"), ("   ", "   "), (" word ", " word"), (" word  ", " word ")],
)
def test_a_window_of_one_word_is_taken_without_asking(window: str, nudge: str) -> None:
    base, nudger = Script({}), Script({"": [(window, 0.9)], nudge: [STOP]})
    pieces, _ = run(base, nudger)
    assert nudges(pieces) == [nudge]
    assert (base.firsts, base.windows) == (0, 0)


@pytest.mark.parametrize("cut_up", [lambda text: [text], list, lambda text: [text[:7], text[7:]]])
def test_how_the_nudger_cuts_its_text_into_tokens_changes_nothing(cut_up: Callable[[str], list[str]]) -> None:
    texts = {"": " Let's think step by step.", " Let's think.": " So be that"}
    nudger = Script({start: [(token, 0.9) for token in cut_up(text)] for start, text in texts.items()})
    nudger.scripts[" Let's think. So be it"] = [*sure(" Amen."), STOP]
    base = Script({" Let's": [(" think", 0.35), (".", 0.6), (" Hmm", 0.2)]})
    base.scripts |= {" Let's think. So": [(" zzz", 0.1)], " Let's think. So be": [(" it", 0.5), STOP]}
    pieces, end = run(base, nudger, Nudging(window=256))
    assert [piece.text for piece in pieces] == [" Let's", " think.", " So be", " it", " Amen."]
    assert end == End("nudging_model_stop", "Let's think. So be it Amen.")


def test_a_token_is_cut_where_the_nudge_ends_inside_it() -> None:
    three = [Token(" ab", 0.5), Token(" cd ef", 0.25), Token(" gh", 0.75)]
    assert cut(three, 6) == (Token(" ab", 0.5), Token(" cd", 0.25))
    assert cut(three, 3) == (Token(" ab", 0.5),)
    assert cut(three, 0) == ()
    assert cut(three, 99) == tuple(three)


# ---- what the base writes


def test_a_base_that_would_end_leaves_it_to_the_nudger() -> None:
    base = Script({" One": [(" zzz", 0.1)], " One two": [STOP]})
    nudger = Script({"": sure(" One two three four"), " One two": [*sure(" and out."), STOP]})
    pieces, end = run(base, nudger)
    assert nudges(pieces) == [" One two", " and out."]
    assert end.answer == "One two and out."
    assert (base.firsts, base.windows) == (2, 0)


def test_a_sure_base_writes_window_after_window() -> None:
    base = Script({" So": [*sure(" a b c d e f g h i"), (" j", 0.1)]})
    nudger = Script({"": sure(" So we go"), " So a b c d e f g h i": [STOP]})
    pieces, _ = run(base, nudger, Nudging(window=4))
    assert [piece.text for piece in pieces] == [" So", " a b c d", " e f g h", " i"]
    assert {piece.why for piece in pieces[1:]} == {"sure"}
    assert base.windows == 3


def test_a_base_whose_next_window_it_just_wrote_gives_way() -> None:
    base = Script({" So": [(" la", 0.9), (" la", 0.9)]}, otherwise=[(" la", 0.9), (" la", 0.9)])
    nudger = Script({"": sure(" So we sing"), " So la": [STOP], " So la la": [STOP]})
    pieces, end = run(base, nudger)
    assert [piece.text for piece in pieces] == [" So", " la"]
    assert end.reason == "nudging_model_stop"


def test_a_base_that_says_more_than_five_words_again_gives_way() -> None:
    tale = " it was a dark and stormy night"
    base = Script({" Well": sure(" Once" + tale), f" Well Once{tale} Then": sure(" Now" + tale)})
    nudger = Script({"": sure(" Well I say"), f" Well Once{tale}": sure(" Then I say")})
    nudger.scripts[f" Well Once{tale} Then Now"] = [*sure(" the end."), STOP]
    base.scripts[f" Well Once{tale}"] = [(" Hmm", 0.1)]
    _, end = run(base, nudger)
    assert end.answer == f"Well Once{tale} Then Now the end."


def test_repetition_needs_more_than_five_words() -> None:
    assert said(" a b c d e", "x a b c d e f")
    assert not said(" a b c d", "x a b c d e f")
    assert not said(" a b c d e", "x a b c d f")


def test_a_base_with_windows_of_one_token_gives_way_after_each() -> None:
    """The first token is taken as it is, and then there is none left to be sure of."""
    base = Script({"One": sure(" two three"), "One two four": sure(" five six")})
    nudger = Script({"": [("One x", 0.9)], "One two": [(" four x", 0.9)], "One two four five": [STOP]})
    pieces, _ = run(base, nudger, Nudging(window=1))
    assert [piece.text for piece in pieces] == ["One", " two", " four", " five"]


# ---- ends


@pytest.mark.parametrize("most", range(1, 12))
def test_the_limit_is_kept_to_the_token(most: int) -> None:
    base = Script({" Let's": [(" solve", 0.55), (" it", 0.45), (":", 0.41), (" x", 0.39)]})
    nudger = Script({**STEPS, " Let's solve it:": [*sure(" two and two are four"), STOP]})
    pieces, end = run(base, nudger, most=most)
    whole, _ = run(base, nudger)
    told = [token for piece in whole for token in piece.tokens]
    assert [token for piece in pieces for token in piece.tokens] == told[:most]
    assert end.reason == ("length" if most < len(told) else "nudging_model_stop")


def test_nobody_is_asked_beyond_the_limit() -> None:
    base = Script({" Let's": [(" solve", 0.55), (" it", 0.45), (":", 0.41), (" x", 0.39)]})
    nudger = Script(STEPS)
    assert run(base, nudger, most=1)[1] == End("length", "Let's")
    assert (base.windows, nudger.windows) == (0, 1)
    endless = Script({" Let's": sure(" a b c d e f g h i j k l m n o p")})
    assert run(endless, nudger, Nudging(window=4), most=9)[1] == End("length", "Let's a b c d e f g h")
    assert (endless.windows, nudger.windows) == (2, 2)


def test_rounds_are_limited() -> None:
    counting = Script({"": sure(" 1 x"), " 1": sure(" 2 x"), " 1 2": sure(" 3 x")})
    pieces, end = run(Script({}, otherwise=[(" zzz", 0.1)]), counting, Nudging(max_rounds=3))
    assert nudges(pieces) == [" 1", " 2", " 3"]
    assert end == End("rounds", "1 2 3")


def test_gamma_1_leaves_the_words_to_the_nudger_and_gamma_0_to_the_base() -> None:
    base = Script({" Let's": [(" solve", 0.05), (" it", 0.45), STOP]}, otherwise=[(" zzz", 0.99)])
    nudger = Script({**STEPS, " Let's think step by": [*sure(" step."), STOP], " Let's solve it": [STOP]})
    assert run(base, nudger, Nudging(gamma=1))[1].answer == "Let's think step by step."
    assert run(base, nudger, Nudging(gamma=0))[1].answer == "Let's solve it"


def test_long_endings_that_repeat_are_cut_off() -> None:
    line = " The quick brown fox jumps over the dog."
    assert trimmed(f" Look.{line}{line}{line} ") == f"Look.{line}"
    assert trimmed("  short short short  ") == "short short short"
    assert trimmed("x" * 59) == "x" * 59
    assert trimmed("x" * 60) == "x" * 30

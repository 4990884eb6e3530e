"""Text as it comes: characters are never split, stops are found wherever tokens end, and nothing is told twice."""

from __future__ import annotations

import random

import pytest

from trimtab.serving.text import Detokenizer, Stops

TEXT = "Grüße, 世界 👩‍👧! naïve\nend"


def decode(ids: list[int]) -> str:
    """Token i is byte i."""
    return bytes(ids).decode(errors="replace")


def test_tokens_of_single_bytes_give_whole_characters() -> None:
    words = Detokenizer(decode)
    told = [words.push(byte) for byte in TEXT.encode()]
    assert "".join(told) == TEXT
    assert all("\ufffd" not in text for text in told)
    assert words.flush() == ""


def test_bytes_that_become_no_character_are_told_at_the_end() -> None:
    words = Detokenizer(decode)
    assert [words.push(byte) for byte in "a🙂".encode()[:3]] == ["a", "", ""]
    assert words.flush() == "\ufffd"
    assert words.flush() == ""


def test_what_stands_before_decides_how_the_first_token_is_written() -> None:
    def spaced(ids: list[int]) -> str:
        return " ".join("abc"[i] for i in ids)

    assert Detokenizer(spaced).push(1) == "b"
    assert Detokenizer(spaced, before=[0] * 20).push(1) == " b"


@pytest.mark.parametrize("stops", [("世",), ("!", "naïve"), ("end",), ("nd?", "x"), (), ("👩‍👧", "👩")])
def test_stops_are_found_however_the_text_is_cut(stops: tuple[str, ...]) -> None:
    places = [TEXT.find(stop) for stop in stops if stop in TEXT]
    wanted = TEXT[: min(places)] if places else TEXT
    for seed in range(30):
        draw, found, left, told = random.Random(seed), Stops(stops), TEXT, ""
        while left and not found.stopped:
            size = draw.randint(1, 4)
            told += found.push(left[:size])
            assert wanted.startswith(told)
            left = left[size:]
        assert found.stopped == bool(places)
        assert told + found.flush() == wanted


def test_only_what_may_become_a_stop_is_held_back() -> None:
    stops = Stops(["\n\nQ:", "END"])
    assert [stops.push(text) for text in ("a", "b\n", "c", "\n\n", "E", "N", "X", "\n")] == [
        *("a", "b", "\nc", "", "\n\n", "", "ENX", ""),
    ]
    assert stops.flush() == "\n"

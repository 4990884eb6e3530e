"""The page's view of debates in a real browser, against a real server whose debates come off a script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode

import pytest
from tests.serving.browser import CHROMIUM, Page, until
from tests.serving.scripted_app import MARKUP, MODELS, Script, serving
from tests.serving.scripted_debate import ALL, DEBATES, SPEECHES, debated

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
ENDED = "/^(Done|Failed|Stopped)$/.exec(document.querySelector('#debate-state')?.textContent)?.[0]"
TURNS = "[...document.querySelectorAll('.turn')]"
GIVEN = {"view": "debate", "model": "debate-sequential", "question": "Capital?", "first": "Paris", "second": "Lyon"}


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with serving(ALL, debated) as found:
        yield found


@pytest.fixture
def server(script: Script) -> Script:
    """The one server, open to all and with all that it has."""
    script.models, script.key = ALL, None
    return script


def link(server: Script, **given: str | int) -> str:
    return f"{server.url}#{urlencode(GIVEN | given)}"


def ran(page: Page, server: Script, **given: str | int) -> str:
    """How a debate ended that a link started."""
    page.open(link(server, **{"run": 1} | given))
    return page.wait(ENDED)


def filled(page: Page, server: Script, **given: str | int) -> None:
    page.open(link(server, **given))
    page.wait("document.querySelector('#debate-question')?.value")


def meters(page: Page, selector: str) -> list[str]:
    return page.value(f"[...document.querySelectorAll('{selector} .meter')].map(one => one.ariaLabel)")


def test_a_debate_is_shown_turn_by_turn_with_what_judges_think(tab: Page, server: Script) -> None:
    assert ran(tab, server, source="Paris is the capital of France.") == "Done"
    assert tab.value(f"{TURNS}.map(one => one.querySelector('.said').textContent)") == SPEECHES
    assert tab.value(f"{TURNS}.map(one => one.dataset.side)") == ["0", "1", "0", "1"]
    assert tab.value(f"{TURNS}[2].querySelector('h2').innerText.split('\\n')") == ['Debater 1, for "Paris"', "round 2"]
    assert tab.value(f"{TURNS}.map(one => one.ariaBusy)") == ["false"] * 4
    lefts = tab.value(f"{TURNS}.map(one => one.getBoundingClientRect().left)")
    assert lefts[0] == lefts[2] < lefts[1] == lefts[3]
    beats = [("before the first turn", 50, 50), ("after 1 turn", 65, 35), ("after 2 turns", 45, 55)]
    beats += [("after 3 turns", 70, 30), ("after 4 turns", 72, 28)]
    assert meters(tab, ".turns") == [f"panel {when}: “Paris” {one} %, “Lyon” {two} %" for when, one, two in beats]
    assert meters(tab, ".meters") == [
        "panel: “Paris” 72 %, “Lyon” 28 %",
        "weak-a: “Paris” > 99.9 %, “Lyon” < 0.1 %",
        "weak-b: “Paris” 45 %, “Lyon” 55 %",
    ]
    assert tab.text("#debate-verdict") == "Verdict“Paris”72 % to 28 %; 1 of 2 judges on this side"
    assert "70 prompt, 31 text" in tab.text("#debate-numbers")


def test_the_same_is_shown_however_events_are_dealt_to_chunks(tab: Page, server: Script) -> None:
    shown = set()
    for model in ("debate-sequential", "debate-simultaneous"):
        for size in (1, 4, 1000):
            assert ran(tab, server, model=model, seed=size) == "Done"
            shown.add((model, tab.text("#debate-transcript"), tab.text("#debate-board"), tab.text("#debate-verdict")))
    assert len(shown) == 2


def test_speakers_at_once_stand_side_by_side(tab: Page, server: Script) -> None:
    ran(tab, server, model="debate-simultaneous")
    assert tab.value(f"{TURNS}.map(one => one.querySelector('.said').textContent)") == SPEECHES
    tops = tab.value(f"{TURNS}.map(one => one.getBoundingClientRect().top)")
    assert tops[0] == tops[1] < tops[2] == tops[3]
    assert len(meters(tab, ".turns")) == 3


@pytest.mark.parametrize(("model", "side"), [("debate-consultancy", "1"), ("debate-self_critique", "none")])
def test_one_speaker_has_one_column(tab: Page, server: Script, model: str, side: str) -> None:
    ran(tab, server, model=model)
    assert tab.value("document.querySelector('.turns').dataset.columns") == "1"
    assert tab.value(f"{TURNS}.map(one => one.dataset.side)") == [side, side]


def test_quotes_tell_whether_they_stand_in_the_source(tab: Page, server: Script) -> None:
    ran(tab, server)
    marks = "[...document.querySelectorAll('.said > *')].map(one => [one.localName, one.textContent, one.title])"
    assert tab.value(marks) == [
        ["mark", "Paris is the capital", "Stands in the source, word for word"],
        ["s", "Lyon has ten million", "Does not stand in the source"],
    ]
    assert tab.value(f"{TURNS}.map(one => one.querySelector('.hint').textContent)") == [
        "12 tokens · cut to the limit of words · 1 quote in the source",
        "7 tokens · 1 quote not in the source",
        "8 tokens",
        "5 tokens",
    ]


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_in_mid_turn_ends_the_stream_and_keeps_what_was_said(tab: Page, server: Script, how: str) -> None:
    left = server.left
    filled(tab, server, question="endless")
    tab.click("#debate-run")
    tab.wait(f"{TURNS}[1]?.textContent.includes('on and on on and on')")
    assert tab.text("#debate-state") == "Turn 2 of 4"
    assert tab.value(f"{TURNS}.map(one => one.ariaBusy)") == ["false", "true"]
    assert meters(tab, ".meters")[0] == "panel: “Paris” 65 %, “Lyon” 35 %"
    tab.click("#debate-stop") if how == "button" else tab.press("Escape")
    tab.wait(f"{ENDED} === 'Stopped'")
    until(lambda: server.left == left + 1, "the stream at the server")
    assert tab.value(f"{TURNS}[1].textContent").endswith("broken off here")
    assert not tab.sees("#debate-error") and tab.text("#debate-verdict") == ""
    tab.write("#debate-question", "And now?")
    tab.press("Enter", control=True)
    tab.wait(f"{ENDED} === 'Done'")
    assert tab.value(f"{TURNS}.length") == 4


@pytest.mark.parametrize(
    ("question", "message", "turns"),
    [
        ("refuse", "max_tokens is too large.", 0),
        ("fail", "The debater stopped.", 2),
        ("cut", "The stream broke off before its end.", 2),
    ],
)
def test_errors_are_told_in_words(tab: Page, server: Script, question: str, message: str, turns: int) -> None:
    assert ran(tab, server, question=question) == "Failed"
    assert tab.text("#debate-error") == message and tab.sees("#debate-error")
    assert tab.value(f"{TURNS}.map(one => one.querySelector('.hint').textContent)")[1:] == ["broken off here"][:turns]
    assert not tab.value("document.querySelector('#debate-run').disabled")


def test_what_anyone_says_is_never_markup(tab: Page, server: Script) -> None:
    ran(tab, server, model="debate-consultancy", question="markup", first=MARKUP)
    assert tab.text(".said") == tab.text("#debate-about") == MARKUP
    assert tab.text("#debate-verdict b") == f"“{MARKUP}”"
    assert tab.value("document.querySelectorAll('img, body script').length") == 0
    assert tab.value("document.title") == "trimtab"


def test_a_link_the_request_and_the_line_for_the_shell_agree(tab: Page, server: Script) -> None:
    given = GIVEN | {"run": "1", "source": "a & 'b'", "seed": "7", "protocol_turns": "1", "protocol_words": "40"}
    assert ran(tab, server, **given) == "Done"
    assert server.asked[-1] == (
        "chat/completions",
        {
            "model": "debate-sequential",
            "messages": [{"role": "user", "content": "Capital?"}],
            "debate": {"answers": ["Paris", "Lyon"], "source": "a & 'b'", "turns": 1, "words": 40},
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    words = shlex.split(tab.text("#debate-curl"))
    assert words[2] == f"{server.url}v1/chat/completions" and json.loads(words[-1]) == server.asked[-1][1]
    assert tab.value("[location.hash, document.querySelector('#debate-with-source').open]") == ["", True]
    tab.value("document.querySelector('#debate .curl').open = true")
    tab.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.click("#debate-copy-link")
    tab.wait("document.querySelector('#debate-copied').textContent === 'Copied'")
    assert parse_qs(tab.value("navigator.clipboard.readText()").partition("#")[2]) == parse_qs(urlencode(given))


def test_what_is_left_empty_is_left_out_and_equal_answers_are_not_sent(tab: Page, server: Script) -> None:
    filled(tab, server, second="Paris ", seed="")
    asked = len(server.asked)
    tab.click("#debate-run")
    message = "document.querySelector('#debate-second').validationMessage"
    assert tab.value(message) == "The two answers must differ."
    tab.write("#debate-second", "Lyon")
    assert tab.value(message) == "" and len(server.asked) == asked
    body = json.loads(shlex.split(tab.text("#debate-curl"))[-1])
    assert "seed" not in body and "source" not in body["debate"]


def test_arrows_walk_the_tabs(tab: Page, server: Script) -> None:
    tab.open(server.url)
    tab.wait("document.querySelector('#model')?.value")
    views = "['guided', 'debate'].filter(id => document.getElementById(id).checkVisibility())"
    selected = "[...document.querySelectorAll('[role=tab][aria-selected=true][tabindex=\"0\"]')].map(one => one.id)"
    assert tab.value(f"[{views}, document.querySelectorAll('[role=tab]').length]") == [["guided"], 2]
    tab.click("#guided-tab")
    for key, view in [("ArrowRight", "debate"), ("ArrowRight", "guided"), ("ArrowLeft", "debate"), ("End", "debate")]:
        tab.press(key)
        assert tab.value(f"[{views}, {selected}, document.activeElement.id]") == [
            [view],
            [f"{view}-tab"],
            f"{view}-tab",
        ]


def test_views_that_a_server_has_nothing_for_are_hidden(tab: Page, server: Script) -> None:
    tabs = "[...document.querySelectorAll('[role=tab]')].filter(one => one.checkVisibility()).map(one => one.id)"
    only_guided = (MODELS, "guided", "view=debate", "This server has no debate.")
    only_debate = (DEBATES, "debate", "prompt=x", "This server has no ensemble to guide with.")
    for models, view, elsewhere, missing in (only_guided, only_debate):
        server.models = models
        tab.open(server.url)
        tab.wait(f"document.querySelector('#{view} select')?.value")
        assert tab.value(tabs) == [f"{view}-tab"]
        assert tab.sees(f"#{view}") and not tab.sees("#trouble")
        tab.open(f"{server.url}#{elsewhere}")
        tab.wait("document.querySelector('#trouble')?.checkVisibility()")
        assert tab.text("#trouble") == missing and tab.sees(f"#{view}")


def test_a_key_that_is_asked_for_leads_to_the_linked_debate(tab: Page, server: Script) -> None:
    server.key = "s3cret"
    tab.open(link(server, run=1))
    tab.wait("document.querySelector('#key-form')?.checkVisibility()")
    tab.write("#key", "s3cret")
    tab.press("Enter")
    assert tab.wait(ENDED) == "Done"
    assert "Bearer $API_KEY" in tab.text("#debate-curl")


def test_nothing_overflows_a_phone_in_light_or_dark(tab: Page, server: Script) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        tab.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.command("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        ran(tab, server, question="unbroken" * 40, first="unbroken" * 20, source="x")
        tab.value("document.querySelector('#debate .curl').open = true")
        assert tab.value("document.documentElement.scrollWidth") == 360
        assert tab.value(f"new Set({TURNS}.map(one => one.getBoundingClientRect().left)).size") == 1
        papers.add(tab.value("getComputedStyle(document.querySelector('.board')).backgroundColor"))
    assert len(papers) == 2

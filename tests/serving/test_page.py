"""The page in a real browser, against a real server that speaks from a script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from urllib.parse import parse_qs

import pytest
from tests.serving.browser import CHROMIUM, Page, until
from tests.serving.scripted_app import GUIDED, MARKUP, PLAIN, Script, serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
TOKENS = "[...document.querySelectorAll('#steered .text span')]"
STATE = "document.querySelector('#state').textContent"


@pytest.fixture
def server() -> Iterator[Script]:
    with serving() as script:
        yield script


@pytest.fixture
def page(tab: Page, server: Script) -> Page:
    """The page, its list of ensembles loaded."""
    tab.open(server.url)
    tab.wait("document.querySelector('#model')?.value")
    return tab


def ran(page: Page, prompt: str, state: str = "Done") -> None:
    page.write("#prompt", prompt)
    page.click("#run")
    page.wait(f"{STATE} === '{state}'")


def choose(page: Page, model: str) -> None:
    """As the list itself does it, which opens in no window here."""
    change = f"(list => (list.value = '{model}', list.dispatchEvent(new Event('change'))))"
    page.value(f"{change}(document.querySelector('#model'))")


def numbers(page: Page, side: str) -> dict[str, str]:
    script = (
        f"[...document.querySelectorAll('#{side} .numbers div')].map(one => [...one.children].map(c => c.textContent))"
    )
    return dict(page.value(script))


def test_only_ensembles_are_offered_with_sliders_for_their_ranges(page: Page) -> None:
    assert page.value("[...document.querySelector('#model').options].map(one => one.value)") == ["kind", "terse"]
    assert page.text("#about") == "Kinder words."
    assert page.text("#steered .who") == "big + small-kind, genarm"
    slider = "(({min, max, step, value, name, labels: [label]}) => [min, max, step, value, name, label.textContent])"
    sliders = f"[...document.querySelectorAll('#guidance input')].map({slider})"
    assert page.value(sliders) == [["0", "2", "0.25", "1", "alpha", "Guidance: alpha1"]]
    choose(page, "terse")
    assert page.value(sliders) == [
        ["0", "1", "any", "0.4", "gamma", "Guidance: gamma0.4"],
        ["1", "64", "1", "16", "window", "Guidance: window16"],
    ]


def test_both_sides_stream_and_tell_their_numbers(page: Page) -> None:
    ran(page, "Say it.")
    assert page.text("#base .text") == " It is 漢 bad."
    assert page.text("#steered .text") == " It is naïve good!\n"
    base, steered = numbers(page, "base"), numbers(page, "steered")
    assert set(base) == {"first token", "speed", "ended by", "tokens"}
    assert base["tokens"] == f"7 prompt, {len(PLAIN)} text"
    assert steered["ended by"] == "stop"
    assert steered["small-kind"] == f"7 prompt, {len(GUIDED)} decode"
    mean = sum(fused - alone for _, fused, alone in GUIDED) / len(GUIDED)
    assert steered["mean push"] == f"+{mean:.2f} nats"


@pytest.mark.parametrize(("mode", "route"), [("chat", "chat/completions"), ("completion", "completions")])
def test_the_two_requests_differ_in_their_guidance_alone(page: Page, server: Script, mode: str, route: str) -> None:
    page.click(f"[name=mode][value={mode}]")
    page.click("#guidance-alpha")
    page.press("ArrowRight")
    page.write("#max-tokens", "9")
    page.write("#temperature", "0")
    page.write("#seed", "")
    ran(page, "Say it.")
    alone, guided = server.body("none"), server.body(None)
    assert {route for route, _ in server.asked} == {route}
    assert alone.pop("guidance") == {"method": "none"}
    assert guided.pop("guidance") == {"alpha": 1.25, "trace": True}
    assert alone == guided
    words = {"messages": [{"role": "user", "content": "Say it."}]} if mode == "chat" else {"prompt": "Say it."}
    assert guided.items() >= ({"model": "kind", "max_tokens": 9, "temperature": 0} | words).items()
    assert "seed" not in guided
    assert page.text("#steered .text") == " It is naïve good!\n"


def test_the_colour_of_a_token_is_what_the_guide_changed(page: Page) -> None:
    ran(page, "Say it.")
    ways = page.value(f"{TOKENS}.map(one => one.dataset.way)")
    assert ways == ["as-is", "down", "up", "up", "up"]
    strengths = page.value(f"{TOKENS}.map(one => Number(one.style.getPropertyValue('--strength')))")
    assert strengths == pytest.approx([0, 0.1, 1, 0.5, 0.5], abs=1e-3)
    drawn = page.value(f"{TOKENS}.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(drawn[1:4])) == 3
    alone = "[...document.querySelectorAll('#base .text span')].map(one => one.dataset.way)"
    assert set(page.value(alone)) == {"unknown"}


def test_a_token_that_a_helper_wrote_alone_says_so(page: Page) -> None:
    choose(page, "terse")
    ran(page, "Say it.")
    assert set(page.value(f"{TOKENS}.map(one => one.dataset.way)")) == {"helper"}
    page.hover("#steered .text span")
    page.wait("document.querySelector('#card').checkVisibility()")
    assert "written by small-kind" in page.text("#card")
    assert "mean push" not in numbers(page, "steered")


def test_pointing_at_a_token_shows_its_numbers(page: Page) -> None:
    ran(page, "Say it.")
    page.hover("#steered .text span:nth-child(3)")
    card = page.wait("document.querySelector('#card').checkVisibility() && document.querySelector('#card').innerText")
    rows = [line.split("\t") for line in card.splitlines() if "\t" in line]
    assert "␣naïve" in card and "+4.00 nats" in card
    assert [row for row in rows if row[0] in ("big", "small-kind", "together")] == [
        ["big", "1.00", "−5.00", "0.7 %"],
        ["small-kind", "1.00", "−0.30", "74 %"],
        ["together", "", "−1.00", "37 %"],
    ]
    assert ["␣other", "−3.00", "5.0 %"] in rows
    page.hover("h1")
    assert not page.sees("#card")


def test_the_keyboard_runs_and_walks_the_tokens(page: Page) -> None:
    page.write("#prompt", "Say it.")
    page.press("Enter", control=True)
    page.wait(f"{STATE} === 'Done'")
    assert page.value("document.querySelectorAll('.text span[tabindex=\"0\"]').length") == 2
    page.value("document.querySelector('#steered .text span[tabindex=\"0\"]').focus()")
    page.press("ArrowRight")
    assert page.value("document.activeElement.textContent") == " is"
    assert "held back by the guide" in page.text("#card")
    assert page.value("document.activeElement.getAttribute('aria-describedby')") == "card"
    page.press("End")
    assert page.value("document.activeElement.textContent") == "!\n"
    page.press("Escape")
    assert not page.sees("#card")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_ends_both_streams_at_the_server_too(page: Page, server: Script, how: str) -> None:
    page.write("#prompt", "endless")
    page.click("#run")
    page.wait("['base', 'steered'].every(id => document.querySelectorAll(`#${id} .text span`).length > 3)")
    assert page.value("document.querySelector('#run').disabled")
    page.click("#stop") if how == "button" else page.press("Escape")
    page.wait(f"{STATE} === 'Stopped'")
    until(lambda: server.left == 2, "the streams at the server")
    assert page.text("#steered .text").startswith(" It It It")
    assert not page.sees("#steered .error")
    ran(page, "Say it.")
    assert page.text("#base .text") == " It is 漢 bad."


@pytest.mark.parametrize(
    ("prompt", "message", "text"),
    [
        ("refuse", "max_tokens is too large.", ""),
        ("fail", "The decoder stopped.", " It is"),
        ("cut", "The stream broke off before its end.", " It is"),
    ],
)
def test_errors_stand_where_they_belong(page: Page, prompt: str, message: str, text: str) -> None:
    ran(page, prompt, "Failed")
    for side in ("base", "steered"):
        assert page.sees(f"#{side} .error")
        assert page.text(f"#{side} .error") == message
        assert page.text(f"#{side} .text") == text
    ran(page, "Say it.")
    assert not page.sees("#base .error")


def test_a_server_that_is_gone_is_an_error_too(tab: Page) -> None:
    with serving() as script:
        tab.open(script.url)
        tab.wait("document.querySelector('#model')?.value")
    ran(tab, "Say it.", "Failed")
    assert tab.text("#base .error").startswith("The server cannot be reached")


def test_a_key_is_asked_for_and_stays_in_the_tab(tab: Page, server: Script) -> None:
    server.key = "s3cret"
    tab.open(server.url)
    tab.wait("document.querySelector('#key-form')?.checkVisibility()")
    assert tab.text("#trouble") == "That is no key of this server."
    for key in ("wrong", "s3cret"):
        tab.write("#key", key)
        tab.press("Enter")
        tab.wait(
            f"sessionStorage.length && {str(key == 's3cret').lower()} === !!document.querySelector('#model').value"
        )
        tab.wait(f"document.querySelector('#key-form').checkVisibility() === {str(key == 'wrong').lower()}")
    assert not tab.sees("#trouble")
    ran(tab, "Say it.")
    assert tab.text("#base .text") == " It is 漢 bad."
    assert tab.value("[localStorage.length, document.cookie, Object.values(sessionStorage)]") == [0, "", ["s3cret"]]
    assert "s3cret" not in tab.text("#curl") and "Bearer $API_KEY" in tab.text("#curl")


def test_what_models_say_is_never_markup(page: Page) -> None:
    choose(page, "terse")
    ran(page, "markup")
    page.hover("#steered .text span")
    page.wait("document.querySelector('#card').checkVisibility()")
    assert page.text("#about") == page.text("#steered .text") == MARKUP
    assert "onerror" in page.text("#card")
    assert page.value("document.querySelectorAll('img, body script').length") == 0
    assert page.value("document.title") == "trimtab"


def test_the_line_for_the_shell_is_the_guided_request(page: Page, server: Script) -> None:
    ran(page, 'it\'s "so"\nand so')
    words = shlex.split(page.text("#curl"))
    assert words[2] == f"{server.url}v1/chat/completions"
    assert json.loads(words[-1]) == server.body(None)


def test_a_link_fills_the_form_and_runs_it(tab: Page, server: Script) -> None:
    given = "run=1&model=kind&mode=completion&prompt=a%20%26%20b&max-tokens=5&temperature=1&seed=8&guidance_alpha=0.5"
    tab.open(f"{server.url}#{given}")
    tab.wait(f"document.querySelector('#state') && {STATE} === 'Done'")
    asked = server.body(None)
    assert [asked[name] for name in ("prompt", "max_tokens", "temperature", "seed")] == ["a & b", 5, 1, 8]
    assert asked["guidance"] == {"alpha": 0.5, "trace": True}
    assert tab.value("location.hash") == ""
    tab.value("document.querySelector('.curl').open = true")
    tab.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.click("#copy-link")
    tab.wait("document.querySelector('#copied').textContent === 'Copied'")
    link = tab.value("navigator.clipboard.readText()")
    assert link.startswith(f"{server.url}#")
    assert parse_qs(link.partition("#")[2]) == parse_qs(given)


def test_nothing_overflows_a_phone_in_light_or_dark(page: Page) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.command("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        page.value("document.querySelector('.curl').open = true")
        ran(page, "unbroken" * 40)
        assert page.value("document.documentElement.scrollWidth") == 360
        papers.add(page.value("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_the_page_is_labelled_and_loads_its_own_files_only(page: Page, server: Script) -> None:
    policy = page.value("document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert page.value("document.querySelectorAll('[style], style, script:not([src]), [onclick], [onload]').length") == 0
    loaded = page.value("performance.getEntriesByType('resource').map(one => one.name)")
    assert {name.removeprefix(server.url) for name in loaded} >= {"page.js", "page.css", "v1/models"}
    assert all(name.startswith(server.url) for name in loaded)
    fields = "[...document.querySelectorAll('input, select, textarea')].filter(one => !one.labels.length)"
    assert page.value(f"{fields}.length") == 0

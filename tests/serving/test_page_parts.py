"""The page's own modules in Node: how events are read out of bytes, what a token's colour says, requests and lines."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import trimtab

PAGE = Path(trimtab.__file__).parent / "serving" / "page"
NODE = shutil.which("node")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NODE is None, reason="there is no Node here to run the page's code")]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in a folder whose scripts Node takes for modules."""
    folder = shutil.copytree(PAGE, tmp_path_factory.mktemp("page") / "page")
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def js(modules: Path, names: str, script: str, given: Any = None) -> Any:
    """What a script gives back that has `given`, and names of a module, as in "push, shade from tokens"."""
    names, _, module = names.partition(" from ")
    whole = f"import {{ {names} }} from {json.dumps((modules / f'{module}.js').as_uri())};\n"
    whole += f"const given = {json.dumps(given)};\nconsole.log(JSON.stringify((() => {{ {script} }})()));"
    done = subprocess.run([NODE, "--input-type=module"], input=whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STREAM = (
    "\ufeff: a comment\r\n\r\n"
    'data: {"text": "naïve 漢 🙂"}\r\n\r\n'
    "event: error\rdata:no space\r\r"
    "id: 7\ndata: first\ndata\ndata:  third\nother: x\n\n"
    "event: empty\n\n"
    "data: [DONE]\n\n"
    "data: never ended\n"
)
EVENTS = [
    {"event": "message", "data": '{"text": "naïve 漢 🙂"}'},
    {"event": "error", "data": "no space"},
    {"event": "message", "data": "first\n\n third"},
    {"event": "message", "data": "[DONE]"},
]


def test_events_are_the_same_wherever_the_bytes_are_cut(modules: Path) -> None:
    script = """
      const bytes = new TextEncoder().encode(given);
      const found = new Set();
      for (let i = 0; i <= bytes.length; i++)
        for (let j = i; j <= bytes.length; j++) {
          const events = new Events();
          const parts = [bytes.slice(0, i), bytes.slice(i, j), bytes.slice(j)];
          found.add(JSON.stringify(parts.flatMap((part) => events.push(part))));
        }
      const events = new Events();
      found.add(JSON.stringify([...bytes].flatMap((byte) => events.push(Uint8Array.of(byte)))));
      return [...found].map((one) => JSON.parse(one));
    """
    assert js(modules, "Events from events", script, STREAM) == [EVENTS]


def test_an_event_comes_with_the_byte_that_ends_it(modules: Path) -> None:
    script = """
      return given.map((ending) => {
        const events = new Events();
        const bytes = new TextEncoder().encode("data: x" + ending);
        return [...bytes].map((byte) => events.push(Uint8Array.of(byte)).length);
      });
    """
    found = js(modules, "Events from events", script, ["\n\n", "\r\r", "\r\n\r\n"])
    assert found == [[0] * 8 + [1], [0] * 8 + [1], [0] * 9 + [1, 0]]


def token(fused: float, base: float | None, *, source: str = "fused", text: str = "a") -> dict[str, Any]:
    said = {"small": -0.1} | ({} if base is None else {"big": base})
    return {"token": text, "logprob": fused, "trace": {"source": source, "said": said, "weights": {}}}


@pytest.mark.parametrize(
    ("tokens", "nats"),
    [
        ([token(-1.0, -3.5)], 2.5),
        ([token(-2.0, -0.5)], -1.5),
        ([token(-1.0, -2.0), token(-0.5, -0.25)], 0.75),
        ([token(-1.0, -9999.0)], 999.0),
        ([token(-1.0, None)], None),
        ([token(-1.0, -2.0), token(-1.0, None)], None),
        ([{"token": "a", "logprob": -1.0, "trace": None}], None),
        ([], None),
    ],
)
def test_the_push_is_the_fused_log_prob_less_the_bases(
    modules: Path, tokens: list[dict[str, Any]], nats: float | None
) -> None:
    assert js(modules, "push from tokens", 'return push(given, "big")', {"text": "a", "tokens": tokens}) == nats


def test_colours_say_which_way_and_how_far(modules: Path) -> None:
    pushes = [None, 0.0, 0.09, -0.09, 0.3, -1.5, 3.0, -3.0, 40.0]
    found = js(modules, "shade from tokens", "return given.map(shade)", pushes)
    ways = ["unknown", "as-is", "as-is", "as-is", "up", "down", "up", "down", "up"]
    assert [one["way"] for one in found] == ways
    assert [one["strength"] for one in found] == pytest.approx([0, 0, 0, 0, 0.1, 0.5, 1, 1, 1])


def test_tokens_become_pieces_that_make_the_text(modules: Path) -> None:
    script = "return given.map(([text, names]) => piecesOf(text, names.map((token) => ({ token }))))"
    cases = [
        [" a b", [" a", " b"]],
        ["é", ["bytes:\\xc3", "bytes:\\xa9"]],
        ["cut", ["cut sh", "ort"]],
        ["a", ["a", ""]],
        ["no tokens", []],
    ]
    found = js(modules, "piecesOf from tokens", script, cases)
    assert [[piece["text"] for piece in pieces] for pieces in found] == [
        [" a", " b"],
        ["é"],
        ["cut"],
        ["a"],
        ["no tokens"],
    ]
    assert [len(pieces[0]["tokens"]) for pieces in found] == [1, 2, 2, 1, 0]


def test_a_piece_is_written_by_one_model_or_by_all_together(modules: Path) -> None:
    pieces = [
        {"tokens": [token(-1, -1, source="nudger"), token(-1, -1, source="nudger")]},
        {"tokens": [token(-1, -1, source="nudger"), token(-1, -1, source="big")]},
        {"tokens": [token(-1, -1)]},
        {"tokens": [{"token": "a", "trace": None}]},
    ]
    assert js(modules, "writer from tokens", "return given.map(writer)", pieces) == ["nudger", None, None, None]


def test_numbers_and_blanks_are_readable(modules: Path) -> None:
    names = "signed, logprobText, percent, visible"
    script = f"""
      const functions = {{ {names} }};
      return given.map(([name, value]) => functions[name](value));
    """
    cases = {
        ("signed", 1.236): "+1.24",
        ("signed", -0.5): "−0.50",
        ("signed", 9998.0): "+∞",
        ("logprobText", -2.0): "−2.00",
        ("logprobText", -9999.0): "−∞",
        ("percent", math.log(0.5)): "50 %",
        ("percent", math.log(0.042)): "4.2 %",
        ("percent", math.log(0.0001)): "< 0.1 %",
        ("percent", -9999.0): "0.0 %",
        ("visible", " a\n\tb\r"): "␣a↵⇥b␍",
        ("visible", ""): "(nothing)",
    }
    assert js(modules, f"{names} from tokens", script, list(cases)) == list(cases.values())


ASKED = {
    "model": "kind",
    "prompt": 'it\'s $HOME `x` "q"\n\\',
    "chat": True,
    "maxTokens": 9,
    "temperature": 0,
    "seed": 3,
}


def test_requests_are_openais_with_guidance(modules: Path) -> None:
    chat = js(modules, "bodyOf from request", "return bodyOf(given, { alpha: 2 })", ASKED)
    assert chat == {
        "model": "kind",
        "messages": [{"role": "user", "content": ASKED["prompt"]}],
        "max_tokens": 9,
        "temperature": 0,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 5,
        "guidance": {"alpha": 2},
    }
    plain = js(modules, "bodyOf from request", "return bodyOf(given, {})", ASKED | {"chat": False, "seed": None})
    assert plain["prompt"] == ASKED["prompt"]
    assert not {"messages", "seed"} & set(plain)


def test_the_line_for_the_shell_sends_the_same_body(modules: Path) -> None:
    script = 'return [false, true].map((key) => curlLine("http://h:1/v1/x", bodyOf(given, {}), key))'
    open_, keyed = js(modules, "bodyOf, curlLine from request", script, ASKED)
    words = shlex.split(open_)
    assert words[:3] == ["curl", "-N", "http://h:1/v1/x"]
    assert json.loads(words[-1])["messages"][0]["content"] == ASKED["prompt"]
    assert "Authorization" not in open_
    assert '-H "Authorization: Bearer $API_KEY"' in keyed


def test_quotes_are_found_in_a_turn_and_none_inside_another(modules: Path) -> None:
    cases = [
        ["a b a c", [{"text": "a", "verified": True}, {"text": "a", "verified": False}], ["a+", " b ", "a-", " c"]],
        [
            "one two three",
            [{"text": "two three", "verified": True}, {"text": "two", "verified": True}],
            ["one ", "two three+"],
        ],
        [
            "late early",
            [{"text": "early", "verified": True}, {"text": "late", "verified": False}],
            ["late-", " ", "early+"],
        ],
        ["none", [{"text": "gone", "verified": True}, {"text": "", "verified": True}], ["none"]],
        ["", [], []],
    ]
    script = """
      const sign = (quote) => (quote ? (quote.verified ? "+" : "-") : "");
      return given.map(([text, quotes]) => partsOf(text, quotes).map((one) => one.text + sign(one.quote)));
    """
    found = js(modules, "partsOf from transcript", script, [case[:2] for case in cases])
    assert found == [parts for _, _, parts in cases]


def test_two_shares_have_as_many_digits(modules: Path) -> None:
    shares = [0.5, 0.61, 0.39, 0.95, 0.05, 0.9995, 0.0005, 1, 0]
    found = js(modules, "shareText from meter", "return given.map(shareText)", shares)
    assert found == ["50 %", "61 %", "39 %", "95.0 %", "5.0 %", "> 99.9 %", "< 0.1 %", "100.0 %", "0.0 %"]

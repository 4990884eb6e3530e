"""The page in a real browser, against the API itself with tiny random networks."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from tests.serving.browser import CHROMIUM, browsing
from tests.serving.kit import arguments, ensemble, llamas, serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


def test_the_page_shows_what_the_api_says(tmp_path: Path) -> None:
    guide = {"kind": "genarm", "alpha": 1.5}
    args = arguments({"tiny": {"base": "base", "helpers": ["helper"], "guide": guide}})
    given = "run=1&model=tiny&mode=completion&prompt=hello&max-tokens=20&temperature=1&seed=3"
    with serving(args, {"tiny": ensemble(llamas())}) as url, browsing(tmp_path) as browser, browser.page() as page:
        page.open(f"{url}/#{given}")
        page.wait("document.querySelector('#state')?.textContent === 'Done'")
        asked = {"model": "tiny", "prompt": "hello", "max_tokens": 20, "temperature": 1, "seed": 3}
        for side, guidance in (("base", {"method": "none"}), ("steered", {"alpha": 1.5})):
            body = json.dumps(asked | {"guidance": guidance}).encode()
            request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)
            assert page.text(f"#{side} .text") == answer["choices"][0]["text"]
            assert f"{answer['usage']['prompt_tokens']} prompt, 20 text" in page.text(f"#{side} .numbers")
        ways = "[...document.querySelectorAll('#steered .text span')].map(one => one.dataset.way)"
        assert set(page.value(ways)) <= {"up", "down", "as-is"}
        assert page.wrongs == []

"""Shared by the tests of the page: a browser, and tabs in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.serving.browser import Browser, Page, browsing


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which nothing may go wrong."""
    with browser.page() as page:
        yield page
        assert page.wrongs == []

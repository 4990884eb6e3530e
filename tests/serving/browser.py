"""Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-port=0",
]
PATIENCE = 60.0
T = TypeVar("T")


def until(work: Callable[[], T], what: str) -> T:
    """What work comes to, once it is truthy."""
    end = time.monotonic() + PATIENCE
    while not (value := work()):
        assert time.monotonic() < end, f"{what} stays {value!r}"
        time.sleep(0.02)
    return value


class Page:
    """A tab. What went wrong inside it is in `wrongs`: exceptions, console errors, what its policy forbade."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.wrongs: list[str] = []
        self._numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self.connection.recv(PATIENCE))).get("id") != number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.wrongs.append(json.dumps(params["exceptionDetails"]))
        entry = params.get("entry", {})
        if entry.get("level") == "error" and entry["source"] != "network":
            self.wrongs.append(entry["text"])

    def open(self, url: str) -> None:
        self.command("Page.navigate", url="about:blank")
        self.command("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What an expression comes to in the page."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The expression's value, once it is truthy."""
        return until(lambda: self.value(script), script)

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({selector!r}).textContent")

    def sees(self, selector: str) -> bool:
        return self.value(f"document.querySelector({selector!r}).checkVisibility()")

    def write(self, selector: str, text: str) -> None:
        """Put the cursor into a field, and type in place of what it holds."""
        self.value(f"(field => (field.focus(), field.select()))(document.querySelector({selector!r}))")
        self.command("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        where = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def hover(self, selector: str) -> None:
        self.command("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def press(self, key: str, *, control: bool = False) -> None:
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "End": 35, "ArrowLeft": 37, "ArrowRight": 39}
        told = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": 2 if control else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", **told)

    def _middle(self, selector: str) -> dict[str, float]:
        script = f"""(found => {{
            found.scrollIntoView({{block: "center"}});
            const {{left, top, width, height}} = found.getClientRects()[0];
            return {{x: left + width / 2, y: top + height / 2}};
        }})(document.querySelector({selector!r}))"""
        return self.value(script)


class Browser:
    """A running Chromium."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A new tab, closed in the end."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(asked) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        with connect(url, max_size=None, open_timeout=PATIENCE) as connection:
            page = Page(connection)
            yield page
            page.command("Page.close")


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Chromium with a profile of its own in a folder."""
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Browser(_port(folder / "DevToolsActivePort", process))
    finally:
        process.terminate()
        process.wait()


def _port(told: Path, process: subprocess.Popen) -> int:
    until(lambda: process.poll() is not None or (told.exists() and "\n" in told.read_text()), "Chromium's port")
    assert process.poll() is None, f"Chromium ended with {process.returncode}"
    return int(told.read_text().split()[0])

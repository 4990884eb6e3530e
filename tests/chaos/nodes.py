"""What the tests of nodes share: drivers as processes, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tests.conftest import Tiny

ROOT = Path(__file__).parents[2]
LONG = 600.0


def until(there: Callable[[], Any]) -> Any:
    """What it gives once that is something."""
    end = time.monotonic() + LONG
    while not (found := there()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@dataclass
class Place:
    """A storage folder with rows, in which drivers train."""

    storage: Path

    @classmethod
    def of(cls, tiny: Tiny, storage: Path) -> Place:
        rows = storage / "artifacts" / "rows-weak"
        rows.mkdir(parents=True)
        (rows / "rows.jsonl").write_text((tiny.weak / "rows.jsonl").read_text())
        (rows / "metrics.json").write_text("{}")
        (storage / "spec.json").write_text(tiny.spec().model_dump_json())
        return cls(storage)

    def driver(self, address: str, *stages: str, workers: int = 1) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driving", str(self.storage), str(workers), *stages],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hold(self, step: int) -> None:
        (self.storage / f"hold-{step}").touch()

    def held(self, step: int, *drivers: subprocess.Popen[str]) -> None:
        """Wait until all ranks have come to a step at which they are held."""

        def there() -> bool:
            assert all(driver.poll() is None for driver in drivers), drivers[0].communicate()
            return (self.storage / f"at-{step}").exists()

        until(there)

    def go_on(self, step: int) -> None:
        (self.storage / f"hold-{step}").unlink()

    def artifact(self, stage: str) -> Path:
        (found,) = (self.storage / "artifacts").glob(f"{stage}-*")
        return found

    def weights(self, stage: str) -> dict[str, Any]:
        return load_file(self.artifact(stage) / "model" / "model.safetensors")


def events(driver: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What it says; Ray prints lines of its own where a node dies."""
    for line in driver.stdout or ():
        if line.startswith("{"):
            yield json.loads(line)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)

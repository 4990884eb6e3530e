"""Pairs of answers that a tiny network can tell apart, what frozen models say of them, and what is trained on them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import BAD, GOOD, PLAIN, Tiny, write_rows

from trimtab.alignment import LogprobSpec, PairSpec, PolicySpec, RewardSpec
from trimtab.compute import Compute
from trimtab.data.pairing import pair_up
from trimtab.stages._base import Stage

ROWS = 32
WEAK = {"weak": 2, "weak_reference": (0, 3)}


def asked() -> list[dict[str, Any]]:
    """Prompts of plain words, each with an answer of good words and one of bad words, in an order of its own."""
    draw, rows = random.Random(1), []
    for i in range(ROWS):
        told = [" " + " ".join(draw.choices(words, k=draw.randint(1, 4))) for words in (GOOD, BAD)]
        candidates = [{"text": text, "ended": draw.random() < 0.8} for text in told]
        prompt = " ".join(draw.choices(PLAIN, k=draw.randint(2, 5))) + f" {GOOD[i % 6]}"
        turned = candidates[::-1] if i % 3 == 0 else candidates
        rows.append({"id": f"q{i}", "prompt": prompt, "group": None, "part": "train", "candidates": turned})
    return rows


def scores_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Higher for good words, by a margin that differs."""
    return {
        row["id"]: [(0.5 + i % 4) * math.copysign(1, _good(c["text"])) for c in row["candidates"]]
        for i, row in enumerate(rows)
    }


def _good(text: str) -> int:
    return 1 if text.split(maxsplit=1)[0] in GOOD else -1


@dataclass(frozen=True)
class Preferring:
    """Folders as stages read them, and outputs of stages, each made once a session."""

    tiny: Tiny

    @property
    def rows(self) -> Path:
        return write_rows(self.tiny.root / "asked", asked())

    @property
    def pairs(self) -> Path:
        found, _ = pair_up(asked(), scores_of(asked()), PairSpec())
        return write_rows(self.tiny.root / "pairs", [pair | {"label_source": "weak"} for pair in found])

    @property
    def singles(self) -> Path:
        from trimtab.stages.unpair import unpair

        return self.made(unpair, PairSpec(), pairs=self.pairs)

    def fields(self, **fields: Any) -> dict[str, Any]:
        """Two steps of 16 rows, in float32."""
        model = {"source": str(self.tiny.model), "dtype": "float32"} | fields.pop("model", {})
        usual = {"batch_size": 16, "num_train_epochs": 1, "learning_rate": 1e-3, "max_length": 32}
        return usual | {"model": model} | fields

    def policy(self, **fields: Any) -> PolicySpec:
        return PolicySpec.model_validate(self.fields(**fields))

    def reward(self, **fields: Any) -> RewardSpec:
        return RewardSpec.model_validate(self.fields(**fields))

    def made(self, stage: Stage, spec: Any, compute: Compute | None = None, **inputs: Path) -> Path:
        """The output of a stage, with its metrics."""
        compute = compute or self.tiny.compute()
        named = hashlib.sha256(repr((stage.__name__, spec, compute.model_dump(), inputs)).encode()).hexdigest()[:16]
        place = self.tiny.root / f"{stage.__name__}-{named}"
        if not (place / "metrics.json").exists():
            place.mkdir()
            (place / "metrics.json").write_text(json.dumps(stage(spec, place, compute=compute, **inputs)))
        return place

    def logprobs(self, rows: Path, *, layers: Any = None, **fields: Any) -> Path:
        """What the network, or a part of it, says of candidates."""
        from trimtab.stages.logprobs import logprobs

        model = {"source": str(self.tiny.model), "dtype": "float32", "layers": layers}
        return self.made(logprobs, LogprobSpec(**{"model": model, "max_length": 32} | fields), rows=rows)

    def inputs(self, spec: PolicySpec) -> dict[str, Path]:
        """What stage align is given for a spec."""
        data = self.singles if spec.objective.unpaired else self.pairs
        rows = data if spec.objective.unpaired else self.rows
        return {"data": data} | {role: self.logprobs(rows, layers=WEAK.get(role)) for role in spec.objective.needs}

    def aligned(self, spec: PolicySpec, compute: Compute | None = None, **inputs: Path) -> Path:
        """The output of stage align."""
        from trimtab.stages.align import align

        return self.made(align, spec, compute, **self.inputs(spec) | inputs)

    def rewarder(self, spec: RewardSpec, compute: Compute | None = None, **inputs: Path) -> Path:
        """The output of stage train_reward."""
        from trimtab.stages.align import train_reward

        return self.made(train_reward, spec, compute, **{"data": self.pairs} | inputs)


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())

"""Every family of training under every ZeRO stage, in full and with LoRA: two steps each, or a refusal that says why.

A few cells run by default; `pytest tests/training/test_support.py --support-matrix docs/support.md` tries all and
writes the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trimtab.alignment import DistilSpec, OnlineSpec, PolicySpec, RewardSpec
from trimtab.errors import TrimtabError

GOOD = ("bright", "calm", "clear", "fine", "kind", "warm")
PLAIN = ("bread", "cup", "door", "house", "lamp", "letter", "morning", "river", "road", "stone", "table", "window")
ROWS = [
    (f"{PLAIN[i]} {PLAIN[(i + j) % 12]}", f"{GOOD[i % 6]} calm", "cold cruel dim") for j in (1, 5) for i in range(12)
]
TRAINER = {
    "sft": "SFTTrainer",
    "dpo": "DPOTrainer",
    "kto": "KTOTrainer",
    "reward": "RewardTrainer",
    "distil": "DistillationTrainer",
    "grpo": "GRPOTrainer",
}
STAGES, TUNES = (0, 1, 2, 3), ("full", "lora")


class Cell(NamedTuple):
    family: str
    zero: int
    tune: str

    def __str__(self) -> str:
        return f"{self.family}-zero{self.zero}-{self.tune}"


CELLS = [Cell(family, zero, tune) for family in TRAINER for zero in STAGES for tune in TUNES]
BY_DEFAULT = [
    Cell("sft", 0, "full"),
    Cell("sft", 1, "lora"),
    Cell("dpo", 3, "lora"),
    Cell("kto", 2, "full"),
    Cell("reward", 3, "full"),
    Cell("distil", 2, "lora"),
    Cell("grpo", 0, "lora"),
    Cell("grpo", 3, "full"),
]
REFUSED: dict[Cell, str] = {}
"""What cannot work, and what the error says of it; so far everything does."""
ON_THE_HEAD = ("dpo", "kto", "distil", "grpo")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        cells = CELLS if metafunc.config.getoption("support_matrix") else BY_DEFAULT
        metafunc.parametrize("cell", cells, ids=str)


@pytest.fixture(scope="session")
def support(request: pytest.FixtureRequest) -> Iterator[dict[Cell, str]]:
    """What came of each cell; at the end it is written down where the option says."""
    found: dict[Cell, str] = {}
    yield found
    if path := request.config.getoption("support_matrix"):
        Path(path).write_text(page(found), encoding="utf-8")


def test_two_steps(tiny: Any, support: dict[Cell, str], cell: Cell, tmp_path: Path) -> None:
    support[cell] = "fails in a way that nobody foresaw"
    if cell in REFUSED:
        with pytest.raises(TrimtabError, match=REFUSED[cell]) as refusal:
            TRAIN[cell.family](tiny, cell, tmp_path)
        support[cell] = str(refusal.value).splitlines()[0]
        return
    metrics = TRAIN[cell.family](tiny, cell, tmp_path)
    assert metrics["train/steps"] == 2 and math.isfinite(metrics["train/loss"])
    logged = [json.loads(line)["values"]["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and all(map(math.isfinite, logged))
    assert moved(tiny.model, tmp_path / "model") > 1e-4
    support[cell] = "works"


@pytest.mark.parametrize("family", ON_THE_HEAD)
def test_adapters_on_the_language_head_are_refused(tiny: Any, tmp_path: Path, family: str) -> None:
    cell = Cell(family, 1, "lora")
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        TRAIN[family](tiny, cell, tmp_path, tune={"kind": "lora", "targets": ["lm_head"]})


def moved(before: Path, after: Path) -> float:
    """The largest change of a weight. Under stage 3 too, and with adapters merged, all weights are there again."""
    from safetensors.torch import load_file

    old, new = (load_file(place / "model.safetensors") for place in (before, after))
    shared = [name for name in old if name in new]
    assert len(shared) >= len(old) - 1  # a reward model has no language head
    assert all(value.isfinite().all() for value in new.values())
    return max(float((new[name] - old[name]).abs().max()) for name in shared)


def fields(tiny: Any, cell: Cell, batch_size: int) -> dict[str, Any]:
    model = {"source": str(tiny.model), "dtype": "float32"}
    common = {"model": model, "tune": {"kind": cell.tune}, "learning_rate": 1e-2, "max_length": 32}
    return common | {"batch_size": batch_size, "num_train_epochs": 2 * batch_size / len(ROWS)}


def on_pairs(tiny: Any, cell: Cell, out: Path, **changed: Any) -> dict[str, float]:
    from trimtab.training.policies import train_on_pairs

    usual = fields(tiny, cell, 12) | changed
    spec = PolicySpec(**usual, objective={"kind": cell.family}) if cell.family != "reward" else RewardSpec(**usual)
    return train_on_pairs(spec, out, compute=tiny.compute(zero_stage=cell.zero), data=shown(tiny, cell.family))


def shown(tiny: Any, family: str) -> Any:
    """Pairs; the chosen ones alone for sft; single completions, each beside the next row's, for kto."""
    import torch

    from trimtab.alignment import ModelSpec
    from trimtab.data.rendering import render_all
    from trimtab.models.language import LanguageModel, load_language
    from trimtab.models.network import load_tokenizer
    from trimtab.training.completions import Shown

    asked = [(prompt, text, True) for prompt, chosen, rejected in ROWS for text in (chosen, rejected)]
    rendered, _ = render_all(load_tokenizer(tiny.model), asked, max_length=32)
    network = load_language(ModelSpec(source=str(tiny.model), dtype="float32"), tiny.compute().cache)
    reference = LanguageModel(network, ends=frozenset(), batch=64)
    scores = reference.score([r.prompt_ids for r in rendered], [r.completion_ids for r in rendered])
    told = [torch.tensor(score.logprobs) for score in scores]
    width = 1 if family == "sft" else 2
    firsts = range(len(ROWS)) if family == "kto" else range(0, len(rendered), 2)
    places = [(i, (i + 2) % len(rendered))[:width] if family == "kto" else (i, i + 1)[:width] for i in firsts]
    good_N = torch.tensor([float(i % 2 == 0) for i, *_ in places])
    return Shown(
        ids=[f"r{i}" for i in firsts],
        completions=[tuple(rendered[i] for i in place) for place in places],
        p_N=good_N,
        margin_N=torch.ones(len(places)),
        frozen={"reference": [tuple(told[i] for i in place) for place in places]},
    )


def on_own_samples(tiny: Any, cell: Cell, out: Path, **changed: Any) -> dict[str, float]:
    from trimtab.training.online import train_distilled, train_online

    rows = [{"id": f"r{i}", "prompt": prompt} for i, (prompt, _, _) in enumerate(ROWS)]
    compute = tiny.compute(zero_stage=cell.zero)
    if cell.family == "distil":
        teacher = {"source": str(tiny.model), "dtype": "float32", "layers": 2}
        usual = fields(tiny, cell, 12) | changed
        spec = DistilSpec(**usual, teacher=teacher, sampling={"samples": 1, "max_new_tokens": 6})
        return train_distilled(spec, out, compute=compute, rows=rows)
    usual = fields(tiny, cell, 16) | {"num_train_epochs": 2 * 16 / (len(ROWS) * 4)} | changed
    spec = OnlineSpec(**usual, sampling={"samples": 4, "max_new_tokens": 6})
    reward = lambda prompts, completions: [float(len(c.text)) for c in completions]  # noqa: E731
    return train_online(spec, out, compute=compute, rows=rows, reward=reward)


TRAIN: dict[str, Callable[..., dict[str, float]]] = dict.fromkeys(("sft", "dpo", "kto", "reward"), on_pairs)
TRAIN |= dict.fromkeys(("distil", "grpo"), on_own_samples)


def page(found: dict[Cell, str]) -> str:
    """The table, and below it why a cell does not work."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "deepspeed", "peft", "accelerate")
    columns = [(zero, tune) for tune in TUNES for zero in STAGES]
    why = {told: f"({i})" for i, told in enumerate(dict.fromkeys(t for t in found.values() if t != "works"), start=1)}
    head = ["| family | TRL's trainer |", *(f" ZeRO {zero}, {tune} |" for zero, tune in columns)]
    lines = ["".join(head), "|---" * (len(columns) + 2) + "|"]
    for family, trainer in TRAINER.items():
        told = [found.get(Cell(family, *column), "not tried") for column in columns]
        lines.append(f"| {family} | {trainer} | " + " | ".join(why.get(text, text) for text in told) + " |")
    return (
        "# What trains under what\n\n"
        "Two steps of every family of training that TRL has a trainer for, on a small network, under every ZeRO\n"
        "stage of DeepSpeed, with all weights trained and with low-rank adapters. A cell works when the losses are\n"
        "finite, the weights move, and the model that is saved is whole. The table is written by\n\n"
        "    pytest tests/training/test_support.py --support-matrix docs/support.md\n\n"
        f"with {', '.join(f'{name} {version(name)}' for name in names)}; one process on a CPU.\n\n"
        + "\n".join(lines)
        + "\n"
        + "".join(f"\n{mark} {text}\n" for text, mark in why.items())
        + f"\nTRL refuses adapters on the language head (`targets: [lm_head]`) of {', '.join(ON_THE_HEAD)}:\n"
        "its losses read that head's own weights, so the adapters would not be trained.\n"
    )

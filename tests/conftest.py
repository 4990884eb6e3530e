"""Shared by all tests: the environment that must stand before torch, and a tiny network with rows to train it on."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import random
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl, write_jsonl
from trimtab.environment import settle
from trimtab.parts import TrainSpec
from trimtab.run.artifact import Artifact
from trimtab.run.joining import LOCAL, SETTINGS, STARTS_WITHIN_S

# Torch and Ray read these when they are imported, which any test module may do before a run starts.
settle()
OURS = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_raylet_start_wait_time_s": f"{STARTS_WITHIN_S:.0f}"}
if "PYTEST_XDIST_WORKER" in os.environ and "RAY_TMPDIR" in os.environ:
    os.environ["RAY_TMPDIR"] += f"/{os.environ['PYTEST_XDIST_WORKER']}"  # no cluster is found from another process
for name, value in {"HF_HUB_OFFLINE": "1", **OURS, **SETTINGS, **LOCAL}.items():
    os.environ.setdefault(name, value)

GOOD = ("bright", "calm", "clear", "fine", "kind", "warm")
BAD = ("bitter", "cold", "cruel", "dim", "harsh", "sour")
LONG = ("test_shipped", "test_nodes", "test_faults", "test_network", "test_serve", "test_tuner", "test_elastic")
LONG += ("test_update", "test_group", "test_real", "test_kill", "test_resume", "test_cli", "test_preference")
LONG += ("test_generate",)
TRAINING = (
    "trimtab.training.policies",
    "trimtab.training.online",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "peft",
)
PLAIN = ("bread", "cup", "door", "house", "lamp", "letter", "morning", "river", "road", "stone", "table", "window")


@dataclass(frozen=True)
class Tiny:
    """A random 4-layer Llama in float32, its rows on disk (folders that hold rows.jsonl), and specs to train it."""

    root: Path
    model: Path
    labelled: Path
    weak: Path
    test: Path

    def spec(self, **fields: Any) -> TrainSpec:
        """Two epochs of four steps of 16 rows, in float32."""
        usual = {"model": {"source": str(self.model), "dtype": "float32"}, "batch_size": 16, "learning_rate": 3e-3}
        return TrainSpec.model_validate(usual | fields)

    def compute(self, **fields: Any) -> Compute:
        return Compute(backend="inline", storage=self.root / "storage", **fields)

    def trained(self, spec: TrainSpec, compute: Compute | None = None, **inputs: Path) -> Path:
        """The output of stage train on `data` (the weak rows, unless said), trained once a session."""
        from trimtab.stages.train import train

        compute = compute or self.compute()
        inputs = {"data": self.weak} | inputs
        place = self._place("train", spec, compute.model_dump(), inputs)
        if place.is_dir():
            return place
        place.mkdir(parents=True)
        metrics = train(spec, place, compute=compute, **inputs)
        (place / "metrics.json").write_text(json.dumps(metrics))
        return place

    def states(self, spec: TrainSpec, rows: Path) -> Path:
        """The states of a spec's trunk for these rows, computed once a session."""
        from trimtab.stages.features import features

        place = self._place("states", spec.trunk(), rows)
        if not place.is_dir():
            place.mkdir(parents=True)
            features(spec.trunk(), place, compute=self.compute(), rows=rows)
        return place

    def _place(self, *made_of: Any) -> Path:
        return self.root / hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]

    def given(self, artifacts: Path, name: str = "weak") -> Artifact:
        """Rows as an artifact that is there already."""
        made = Artifact("rows", name, artifacts)
        made.folder.mkdir(parents=True)
        shutil.copy(getattr(self, name) / "rows.jsonl", made.folder)
        (made.folder / "metrics.json").write_text("{}")
        return made

    def table(self, folder: Path) -> list[dict[str, Any]]:
        return read_jsonl(folder / "rows.jsonl")


def sentence(draw: random.Random) -> tuple[str, int]:
    """A few words, more of them good (class 1) or more of them bad (class 0)."""
    label, count = draw.randrange(2), draw.choice((1, 3, 5))
    told = [draw.choice(GOOD if label else BAD) for _ in range(count)]
    words = told + [draw.choice(PLAIN) for _ in range(draw.randrange(8))]
    draw.shuffle(words)
    return " ".join(words), label


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder as stages read it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


def leave_aside() -> None:
    """What is there by now is no garbage: a training that lets go of its memory need not search libraries for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _left_aside() -> None:
    leave_aside()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The network and 64 labelled, 64 weakly labelled and 40 test rows, the same in every session."""
    root = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(root / "model")
    for module in TRAINING:
        importlib.import_module(module)
    leave_aside()
    draw = random.Random(0)
    rows = [dict(zip(("text", "label"), sentence(draw), strict=True), id=f"r{i}") for i in range(168)]
    weak = []
    for row in rows[64:128]:
        sure = draw.uniform(0.5, 0.95) if draw.random() < 0.85 else draw.uniform(0.2, 0.5)
        soft = [1 - sure, sure] if row["label"] else [sure, 1 - sure]
        weak.append({"id": row["id"], "text": row["text"], "soft_label": soft, "label_source": "weak"})
    return Tiny(
        root=root,
        model=root / "model",
        labelled=write_rows(root / "labelled", rows[:64]),
        weak=write_rows(root / "weak", weak),
        test=write_rows(root / "test", rows[128:]),
    )


def save_tiny_llama(folder: Path) -> None:
    """A folder that from_pretrained loads: weights drawn from a fixed seed, one token a word."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator([GOOD, BAD, PLAIN], WordLevelTrainer(special_tokens=["[UNK]", "[PAD]", "[EOS]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file, migrated and empty: making one takes seconds, copying it nothing."""
    from trimtab.run.track_words import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """A place to track runs in, for tests that are about something else."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('tracking') / 'mlflow.db')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-matrix", metavar="FILE", help="try every family, ZeRO stage and tune; write the table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tiny network costs seconds of imports, so what uses it is no unit test. Files that take minutes go first."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if "tiny" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.slow)

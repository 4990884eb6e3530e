"""Preference training against TRL's own DPOTrainer as a plain script, as ratios in one run; alternating, same rows.

speed: one DPO training under Ray Train and ZeRO-2, tokens/s between the first step's end and the last's, so that no
start-up counts. four: four losses on one data set, from nothing to four saved models, wall seconds: one run that reads
the rows and asks the reference once, and four scripts that each do, without TRL's checkpointing, which costs time.
Writes bench/results/preference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trimtab.alignment import PromptSpec
from trimtab.data.preferences import read_prompts
from trimtab.models.builtin import builtin_folder

BENCH = Path(__file__).parent
MODEL = "smollm2-135m"
LOSSES = {"sigmoid": 0.0, "ipo": 0.0, "robust": 0.2, "hinge": 0.0}
LEARNING_RATE = 1e-6
CORES = str(os.cpu_count())


def write_pairs(path: Path, count: int) -> None:
    """Pairs made of openings: one to go on from, two texts of two to five others of some 20 to 60 tokens in all."""
    openings = [row.prompt for row in read_prompts(PromptSpec(source="builtin:openings")).rows]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            texts = [" " + ", ".join(draw.sample(openings, draw.randint(2, 5))) + "." for _ in range(2)]
            row = {"prompt": openings[i % len(openings)], "chosen": texts[0], "rejected": texts[1]}
            file.write(json.dumps(row) + "\n")


def tokens_of(rows: Path, model: Path) -> int:
    """Tokens that one pass over the rows shows a model: prompt and completion, twice a pair, with their ends."""
    from transformers import AutoTokenizer

    tokenizer, pairs = AutoTokenizer.from_pretrained(model), [json.loads(line) for line in rows.open()]
    texts = [row["prompt"] + row[side] for row in pairs for side in ("chosen", "rejected")]
    return sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])


class Sides:
    """Both ways of doing the same, each in processes of its own and on all cores."""

    def __init__(self, said: argparse.Namespace, place: Path) -> None:
        self.place, self.rows, self.runs = place, place / "pairs.jsonl", 0
        self.usual = ["--rows", str(self.rows), "--steps", str(said.steps), "--batch", str(said.batch)]
        self.usual += ["--learning-rate", str(LEARNING_RATE)]
        write_pairs(self.rows, said.pairs)
        self.model = builtin_folder(MODEL, place / "cache")
        self.tokens_a_step = tokens_of(self.rows, self.model) / said.pairs * said.batch

    def ours(self, losses: list[str], *, groups: int) -> tuple[float, dict[str, Any]]:
        """Wall seconds of one run in a storage of its own, and what it says of each training."""
        self.runs += 1
        said = [f"{name}:{LOSSES[name]}" for name in losses]
        place = ["--storage", str(self.place / f"ours-{self.runs}"), "--groups", str(groups)]
        seconds, told = timed("preference_graph.py", *self.usual, *place, "--model", str(self.model), "--losses", *said)
        named = {name.partition(":")[0]: one for name, one in told["trainings"].items()}
        return seconds, {"trainings": named, "stages": told["stages"]}

    def theirs(self, loss: str, *options: str) -> tuple[float, dict[str, Any]]:
        self.runs += 1
        out = str(self.place / f"theirs-{self.runs}")
        what = ["--model", str(self.model), "--out", out, "--loss", loss, "--smoothing", str(LOSSES[loss])]
        return timed("trl_dpo.py", *self.usual, *what, *options)

    def rate(self, training: dict[str, Any]) -> float:
        """Tokens/s from the end of the first step to that of the last."""
        ends = training["step_ends"]
        return self.tokens_a_step * (len(ends) - 1) / (ends[-1] - ends[0])


def timed(script: str, *options: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds of a script, and the JSON object it printed."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_worker_niceness": "0"}
    settings |= {"OMP_NUM_THREADS": CORES} if script == "trl_dpo.py" else {}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(BENCH / script), *options],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{script} {' '.join(options)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"{script} {' '.join(options[-4:])}: {seconds:.1f} s", file=sys.stderr)
    return seconds, json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


Run = tuple[float, dict[str, Any]]


def speed(sides: Sides, rounds: int) -> tuple[dict[str, Any], Run]:
    """Rates and ratios; and the last of TRL's runs. With its checkpointing, which costs time, TRL runs once."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "trl_no_checkpointing": []}
    runs["trl"].append(sides.theirs("sigmoid")[1])
    for _ in range(rounds):
        runs["ours"].append(sides.ours(["sigmoid"], groups=1)[1]["trainings"]["sigmoid"])
        lean = sides.theirs("sigmoid", "--no-checkpointing")
        runs["trl_no_checkpointing"].append(lean[1])
    rates = {name: [sides.rate(training) for training in several] for name, several in runs.items()}
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {f"to_{name}": middle["ours"] / value for name, value in middle.items() if name != "ours"}
    losses = {name: several[-1]["loss"] for name, several in runs.items()}
    return {"tokens_per_second": rates, "ratio": ratios, "target": 0.95, "train_loss": losses}, lean


def four(sides: Sides, first: Run) -> dict[str, Any]:
    """Ours has one half of theirs before it and one behind, so that a drift of the machine evens out."""
    names, theirs = list(LOSSES), {"sigmoid": first}
    theirs["ipo"] = sides.theirs("ipo", "--no-checkpointing")
    ours, told = sides.ours(names, groups=int(CORES))
    for name in names[2:]:
        theirs[name] = sides.theirs(name, "--no-checkpointing")
    total = sum(seconds for seconds, _ in theirs.values())
    return {
        "seconds": {"ours": ours, "trl": total, "trl_each": {name: seconds for name, (seconds, _) in theirs.items()}},
        "ratio": ours / total,
        "target": 0.75,
        "stage_seconds": told["stages"],
        "train_loss": {
            "ours": {name: told["trainings"][name]["loss"] for name in names},
            "trl": {name: training["loss"] for name, (_, training) in theirs.items()},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="how often each side's speed is taken")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "preference.json")
    said = parser.parse_args()
    if not 2 <= said.steps < 40:
        sys.exit("--steps: take 2 to 39; the first one is not timed, and of more not every one is logged")
    with tempfile.TemporaryDirectory() as place:
        sides = Sides(said, Path(place))
        fast, last = speed(sides, said.rounds)
        measured = {"speed": fast, "four_methods": four(sides, last)}
    machine = {"cores": int(CORES), "model": MODEL, "tokens_per_step": sides.tokens_a_step}
    result = {"machine": machine, "pairs": said.pairs, "steps": said.steps, "batch": said.batch} | measured
    said.out.parent.mkdir(exist_ok=True)
    said.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

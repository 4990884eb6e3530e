"""Decoding: one model against transformers' generate, ensembles against a loop with caches; drafts; fusion's share.

One thread; seconds are this process's CPU seconds, so that other work on the machine counts little; sides alternate and
medians are compared. Prompts of 30 random tokens, 32 new ones, greedy, bfloat16. Writes bench/results/decode.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from trimtab.alignment import Sampling
from trimtab.methods.guides.genarm import GenArm
from trimtab.models.asked import Asked
from trimtab.models.decode import Decoder
from trimtab.models.language import load_language
from trimtab.models.llama import LlamaStepper
from trimtab.models.speculation import Pace
from trimtab.parts import ModelSpec

BENCH = Path(__file__).parent
MODEL = "builtin:smollm2-135m"
SMALL = (0, 1, 2, 9, 11, 22, 24, 29)
PROMPT, NEW, SLOTS = 30, 32, 8
GREEDY = Sampling(max_new_tokens=NEW, temperature=0)


class Timed:
    """A stepper that adds up the seconds of its reads."""

    def __init__(self, stepper: LlamaStepper) -> None:
        self.stepper, self.seconds = stepper, 0.0
        self.context, self.held = stepper.context, stepper.held
        self.rewind, self.copy = stepper.rewind, stepper.copy

    def read(self, rows: list, *, last: int = 1) -> torch.Tensor:
        started = time.process_time()
        found = self.stepper.read(rows, last=last)
        self.seconds += time.process_time() - started
        return found


class Never(Pace):
    """Drafts nothing."""

    def count(self, helper: int, others: list[int]) -> int:
        return 0


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (count, PROMPT), generator=draw).tolist()


def ours(models: list[torch.nn.Module], asked: list[list[int]], *, drafts: bool = False, pace: Any = None) -> dict:
    """Seconds from the prompts to the last token, those within the models, and what became of drafts."""
    vocabulary = models[0].config.vocab_size
    steppers = [Timed(LlamaStepper(model, SLOTS, 256)) for model in models]
    decoder = Decoder(steppers, ends=[frozenset()] * len(models), vocabulary=vocabulary)
    decoder.pace = pace or (Pace(len(models)) if drafts else Never(len(models)))
    guide = GenArm() if len(models) > 1 else None
    started = time.process_time()
    for i, prompt in enumerate(asked):
        decoder.add(Asked((prompt,) * len(models), GREEDY, i, guide=guide, draft=1 if drafts else None))
    while decoder.busy:
        decoder.step()
    seconds = time.process_time() - started
    return {"seconds": seconds, "reads": [stepper.seconds for stepper in steppers], "pace": decoder.pace}


def generate(model: torch.nn.Module, asked: list[list[int]]) -> dict:
    """transformers' own generate."""
    ids_BT = torch.tensor(asked)
    started = time.process_time()
    with torch.inference_mode():
        model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=NEW, do_sample=False, eos_token_id=None
        )
    return {"seconds": time.process_time() - started}


def loop(models: list[torch.nn.Module], asked: list[list[int]]) -> dict:
    """A plain loop of both models, both caches kept, one request after the other."""
    started = time.process_time()
    with torch.inference_mode():
        for prompt in asked:
            caches = [DynamicCache(config=model.config) for model in models]
            ids_BT = torch.tensor([prompt])
            for _ in range(NEW):
                said = [
                    model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                    for model, cache in zip(models, caches, strict=True)
                ]
                ids_BT = sum(logits.float().log_softmax(-1) for logits in said).argmax(-1, keepdim=True)
    return {"seconds": time.process_time() - started}


def compare(sides: dict[str, Callable[[], dict]], rounds: int) -> dict[str, Any]:
    """Medians of alternating runs; the first round warms up and does not count."""
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            runs[name].append(side())
    return {name: [run["seconds"] for run in several[1:]] for name, several in runs.items()}


def ratio(seconds: dict[str, list[float]], fast: str, slow: str) -> dict[str, Any]:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "ratio": middle[slow] / middle[fast]}


def shares(models: list[torch.nn.Module], rounds: int) -> dict[str, float]:
    """What is not spent within models, and an ensemble's time against the sum of its models' own."""
    asked = prompts(SLOTS, models[0].config.vocab_size)
    both = [ours(models, asked) for _ in range(rounds + 1)][1:]
    outside = statistics.median(1 - sum(run["reads"]) / run["seconds"] for run in both)
    alone = sum(statistics.median(ours([model], asked)["seconds"] for _ in range(rounds)) for model in models)
    return {"fusion_and_sampling": outside, "to_sum_of_models": statistics.median(r["seconds"] for r in both) / alone}


def random_llama(hidden: int, layers: int, vocabulary: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).bfloat16().eval()


def speculation(rounds: int) -> dict[str, Any]:
    """Drafts by a helper of a tenth of the base, whose random weights make both say nearly the same: sampling."""
    base, helper = random_llama(1024, 20, 4096), random_llama(256, 4, 4096)
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (base, helper)]
    asked, paces = prompts(1, 4096), []

    def drafting() -> dict:
        found = ours([base, helper], asked, drafts=True)
        paces.append(found["pace"])
        return found

    global GREEDY  # noqa: PLW0603  the bench's only setting
    greedy, GREEDY = GREEDY, Sampling(max_new_tokens=NEW)
    found = compare({"plain": lambda: ours([base, helper], asked), "drafts": drafting}, rounds)
    GREEDY = greedy
    kept = sum(pace.accepted for pace in paces) / max(1, sum(pace.drafted for pace in paces))
    return ratio(found, "drafts", "plain") | {"helper_to_base": sizes[1] / sizes[0], "acceptance": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path(".trimtab/cache"))
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "decode.json")
    said = parser.parse_args()
    torch.set_num_threads(1)
    base, equal = (load_language(ModelSpec(source=MODEL, dtype="bfloat16"), said.cache).eval() for _ in range(2))
    small = load_language(ModelSpec(source=MODEL, dtype="bfloat16", layers=SMALL), said.cache).eval()
    one, eight = prompts(1, base.config.vocab_size), prompts(SLOTS, base.config.vocab_size)
    found: dict[str, Any] = {"machine": {"threads": 1, "model": MODEL, "prompt": PROMPT, "new": NEW}}
    for name, asked in {"generate_1": one, "generate_8": eight}.items():
        sides = {"ours": lambda a=asked: ours([base], a), "transformers": lambda a=asked: generate(base, a)}
        found[name] = ratio(compare(sides, said.rounds), "ours", "transformers") | {"target": 1.8}
        print(name, found[name]["ratio"], flush=True)
    for name, guide in {"equal": equal, "8_layers": small}.items():
        sides = {"ours": lambda g=guide: ours([base, g], one), "loop": lambda g=guide: loop([base, g], one)}
        found[f"genarm_{name}_1"] = ratio(compare(sides, said.rounds), "ours", "loop") | {"target": 1.8}
        sides = {"ours": lambda g=guide: ours([base, g], eight), "loop": lambda g=guide: loop([base, g], eight)}
        found[f"genarm_{name}_8"] = ratio(compare(sides, 1), "ours", "loop") | {"target": 8.0}
        found[f"shares_{name}"] = shares([base, guide], said.rounds) | {
            "targets": {"fusion_and_sampling": 0.15, "to_sum_of_models": 1.15}
        }
        print(name, found[f"genarm_{name}_1"]["ratio"], found[f"genarm_{name}_8"]["ratio"], flush=True)
    found["speculation"] = speculation(said.rounds) | {"target": 1.5}
    said.out.parent.mkdir(exist_ok=True)
    said.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

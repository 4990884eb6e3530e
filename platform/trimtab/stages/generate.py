"""Stage generate: completions of prompts by a model, drawn row by row with random numbers of their own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trimtab.alignment import GenerateSpec, GuidedSpec, Sampling
from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.lm import Generated, row_seed
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.parts import ModelSpec


class Draws(Protocol):
    """What completions are drawn from: an LM, or a search."""

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt."""
        ...


Rows = list[dict[str, Any]]
Prompts = dict[str, list[int]]
Made = dict[str, list[Generated]]
BASE, SPEED = "base", "speed.json"


@stage(version=1, on="workers", resumes=True)
def generate(
    spec: GenerateSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    partial: Path,
    model: Path | None = None,
    helpers: Mapping[str, Path] | None = None,
) -> Metrics:
    """Every prompt of `rows` with `samples` candidates, their tokens and log-probs (read by `Logprobs`) beside them.

    `model` is the output of the stage that trained it, `helpers` are those of a GuidedSpec's helpers that were trained
    before; log-probs are those of the guided base then, or the base's where a search chose. Ranks share the rows; what
    is done is kept in `partial`, and found there by the next attempt, on however many ranks. Prompts that are too long
    are left out.
    Raises DataError when none is left, and StageError where a log-prob is not finite.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.training.world import world

    ranks, table = world(), read_jsonl(rows / ROWS)
    sources = sources_of(spec, model, helpers or {})
    tokenizer = _tokenizer(sources[BASE], compute.cache)
    kept = _fitting(table, tokenizer, spec.sampling.max_prompt_tokens, told=rows / ROWS)
    found = _found(partial) if ranks.first else {}
    done = ranks.gather(set(found))[0]
    todo = _batches(kept, done, size=max(1, compute.inference_batch // spec.sampling.samples))
    lm = _opened(spec, sources, tokenizer, compute) if ranks.share(todo) else None
    started = time.perf_counter()
    mine = _draw(lm, ranks.share(todo), spec.sampling, partial=partial)
    seconds = max(ranks.gather(time.perf_counter() - started))
    made = {row_id: drawn for part in ranks.gather(mine) for row_id, drawn in part.items()} | found
    if not ranks.first:
        return {}
    made = {row_id: made[row_id] for row_id in kept}
    _write(out, made, table=table, model=_identity(sources, compute.cache), tokenizer=tokenizer)
    drawn = sum(len(sample.ids) for row_id in kept if row_id not in done for sample in made[row_id])
    (out / SPEED).write_text(json.dumps({"tokens_per_second": drawn / seconds}))
    return _counts(made) | {"dropped_long_prompt": len(table) - len(kept), "resumed": len(done)}


def sources_of(spec: GenerateSpec, model: Path | None, trained: Mapping[str, Path]) -> dict[str, ModelSpec]:
    """Base and helpers by name, as earlier stages made them or of their own."""
    from trimtab.models.language import made_by

    helpers = spec.helpers if isinstance(spec, GuidedSpec) else {}
    found = {name: made_by(trained.get(name), helper) for name, helper in helpers.items()}
    return {BASE: made_by(model, spec.model)} | found


def _identity(sources: Mapping[str, ModelSpec], cache: Path) -> str:
    from trimtab.models.language import model_identity

    return "+".join(model_identity(one, cache) for one in sources.values())


def _tokenizer(model: ModelSpec, cache: Path) -> PreTrainedTokenizerBase:
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder

    return load_tokenizer(model_folder(model.source, cache, revision=model.revision))


def _fitting(table: Rows, tokenizer: PreTrainedTokenizerBase, most: int, *, told: Path) -> Prompts:
    """Prompts of up to `most` tokens, by row. Raises DataError when there is none."""
    from trimtab.data.rendering import prompt_tokens

    prompts = ((row["id"], prompt_tokens(tokenizer, row["prompt"])) for row in table)
    kept = {row_id: ids for row_id, ids in prompts if len(ids) <= most}
    if not kept:
        raise DataError(f"{told}: none of {len(table)} prompts has up to {most} tokens")
    return kept


def _found(partial: Path) -> Made:
    """Rows that earlier attempts have done."""
    from trimtab.models.shards import read_shard, shards

    made: Made = {}
    for tensors, note in filter(None, map(read_shard, shards(partial))):
        lengths = tensors["lengths"].tolist()
        ids, logprobs = (tensors[name].split(lengths) for name in ("ids", "logprobs"))
        samples = zip(ids, logprobs, tensors["ended"].tolist(), strict=True)
        drawn = [Generated(i.tolist(), p.tolist(), end) for i, p, end in samples]
        each = len(drawn) // len(note["rows"])
        made |= {row_id: drawn[n * each : (n + 1) * each] for n, row_id in enumerate(note["rows"])}
    return made


def _batches(prompts: Prompts, done: set[str], *, size: int) -> list[Prompts]:
    """What is not done. Batches are made of all rows, so that a row stands in the same one in every attempt."""
    from trimtab.models.features import batches_by_length

    row_ids = list(prompts)
    batches = batches_by_length([len(ids) for ids in prompts.values()], size)
    todo = ({row_ids[i]: prompts[row_ids[i]] for i in batch if row_ids[i] not in done} for batch in batches)
    return [batch for batch in todo if batch]


def _opened(
    spec: GenerateSpec, sources: dict[str, ModelSpec], tokenizer: PreTrainedTokenizerBase, compute: Compute
) -> Draws:
    if isinstance(spec, GuidedSpec):
        return opened_together(spec, sources, compute)
    from trimtab.models.language import LanguageModel, end_ids, load_language

    network = load_language(sources[BASE], compute.cache)
    return LanguageModel(network, ends=end_ids(network, tokenizer), batch=compute.inference_batch)


def opened_together(spec: GuidedSpec, sources: dict[str, ModelSpec], compute: Compute) -> Draws:
    """All in one decoder; for nudging or a search each in its own."""
    from trimtab.methods.guides.nudging import Nudging
    from trimtab.methods.searches._base import Search
    from trimtab.models.guided import GuidedLM, open_ensemble, shared_tokenizer
    from trimtab.models.nudged import NudgedLM
    from trimtab.models.searched import SearchedLM

    sampling = spec.sampling
    room = {"slots": compute.inference_batch, "context": sampling.max_prompt_tokens + sampling.max_new_tokens + 1}
    if isinstance(spec.guide, Nudging | Search):
        tokenizer = shared_tokenizer(sources, compute.cache)
        alone = [open_ensemble({name: one}, compute.cache, **room)[0] for name, one in sources.items()]
        nudges = isinstance(spec.guide, Nudging)
        return NudgedLM(spec.guide, alone, tokenizer) if nudges else SearchedLM(spec.guide, alone[0], alone[1:])
    return GuidedLM(open_ensemble(sources, compute.cache, **room)[0], spec.guide)


def _draw(lm: Draws | None, batches: list[Prompts], sampling: Sampling, *, partial: Path) -> Made:
    """Samples of all batches, each batch left in `partial` as soon as it is drawn."""
    import torch

    from trimtab.models.shards import write_shard
    from trimtab.models.token_table import flat
    from trimtab.progress import Meter

    meter, made = Meter(sum(map(len, batches))), {}
    for batch in batches:
        asked = [(row_id, k) for row_id in batch for k in range(sampling.samples)]
        seeds = [row_seed(sampling.seed, row_id, k) for row_id, k in asked]
        drawn = lm.generate([batch[row_id] for row_id, _ in asked], sampling, seeds)
        for (row_id, _), sample in zip(asked, drawn, strict=True):
            if not all(map(math.isfinite, sample.logprobs)):
                raise StageError(f"row {row_id}: the model gives it log-probs that are not finite")
        ended = torch.tensor([sample.ended for sample in drawn])
        write_shard(partial, flat(drawn) | {"ended": ended}, {"rows": list(batch)})
        made |= {row_id: drawn[i : i + sampling.samples] for i, (row_id, k) in enumerate(asked) if k == 0}
        meter.add(len(batch), sum(len(sample.ids) for sample in drawn))
    return made


def _write(out: Path, made: Made, *, table: Rows, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The rows with their candidates, and the candidates' tokens."""
    from trimtab.data.rendering import tokenizer_identity
    from trimtab.data.tables import write_jsonl
    from trimtab.models.token_table import write_tokens

    by_id = {row["id"]: row for row in table}
    write_jsonl(out / ROWS, (_answered(by_id[row_id], drawn, tokenizer) for row_id, drawn in made.items()))
    write_tokens(out, made, model=model, tokenizer=tokenizer_identity(tokenizer))


def _answered(row: dict[str, Any], drawn: list[Generated], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    bodies = [sample.ids[:-1] if sample.ended else sample.ids for sample in drawn]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in bodies]
    candidates = [{"text": t, "ended": sample.ended} for t, sample in zip(texts, drawn, strict=True)]
    return row | {"candidates": candidates}


def _counts(made: Made) -> Metrics:
    drawn = [sample for samples in made.values() for sample in samples]
    tokens = sum(len(sample.ids) for sample in drawn)
    return {
        "rows": len(made),
        "samples": len(drawn),
        "tokens": tokens,
        "mean_length": tokens / len(drawn),
        "ended": sum(sample.ended for sample in drawn) / len(drawn),
    }

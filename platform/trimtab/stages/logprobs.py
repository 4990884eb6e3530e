"""Stage logprobs: a model's log-prob of every token of every candidate; none is computed twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.alignment import LogprobSpec
from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.lm import TokenScores
from trimtab.models.token_table import Logprobs
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.data.rendering import Rendered
    from trimtab.models.logprob_store import Store
    from trimtab.parts import ModelSpec

__all__ = ["Logprobs", "logprobs"]


@stage(version=1, on="workers")
def logprobs(
    spec: LogprobSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    model: Path | None = None,
    drawn: Path | None = None,
) -> Metrics:
    """Log-probs of the candidates of `rows`, read by `Logprobs`: found in the cache's store, or computed and put there.

    `model` is the output of the stage that trained it. Where `drawn`, the output of generate, is given, they are those
    of the very tokens that were drawn, which need not be those of the text. A candidate that cannot be shown within
    `max_length`, or has no token, has none; the counts say how many.
    Raises DataError for a prompt without a token, and StageError where a log-prob is not finite.
    """
    from trimtab.data.rendering import render_all, tokenizer_identity
    from trimtab.data.tables import read_jsonl
    from trimtab.models.language import made_by, model_identity
    from trimtab.models.logprob_store import Store, key
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.models.token_table import write_tokens
    from trimtab.training.world import world

    ranks, table = world(), read_jsonl(rows / ROWS)
    source = made_by(model, spec.model)
    tokenizer = load_tokenizer(model_folder(source.source, compute.cache, revision=source.revision))
    asked = [(row["prompt"], text["text"], text["ended"]) for row in table for text in row["candidates"]]
    rendered, counts = render_all(tokenizer, asked, max_length=spec.max_length)
    if drawn:
        rendered, counts = _as_drawn(tokenizer, table, Logprobs(drawn))
    owners = [row["id"] for row in table for _ in row["candidates"]]
    if bare := [owner for owner, r in zip(owners, rendered, strict=True) if r and not r.prompt_ids]:
        raise DataError(f"row {bare[0]}: its prompt has no token of its own for a completion to stand behind")
    identity = ranks.gather(model_identity(source, compute.cache) if ranks.first else "")[0]
    store = Store(compute.cache / "logprobs" / identity)
    keys = [key(identity, r.prompt_ids, r.completion_ids) if r else "" for r in rendered]
    wanted = {k: r for k, r in zip(keys, rendered, strict=True) if r}
    there = ranks.gather(set(store.get(wanted)) if ranks.first else set())[0]
    _compute({k: r for k, r in wanted.items() if k not in there}, source, store, compute=compute)
    ranks.gather(None)
    lacking = ranks.gather(wanted.keys() - store.get(wanted).keys() if ranks.first else set())[0]
    elsewhere = ranks.gather({k: found.tolist() for k, found in store.get(lacking).items()})
    if not ranks.first:
        return {}
    store.put({k: values for of_rank in elsewhere for k, values in of_rank.items()})
    found = store.get(wanted)
    if lost := len(wanted) - len(found):
        raise StageError(f"{store.folder}: log-probs of {lost} completions were put there and are not to be found")
    pairs = zip(keys, rendered, strict=True)
    scores = iter([TokenScores(r.completion_ids, found[k].tolist()) if r else TokenScores([], []) for k, r in pairs])
    told = {row["id"]: [next(scores) for _ in row["candidates"]] for row in table}
    write_tokens(out, told, model=identity, tokenizer=tokenizer_identity(tokenizer))
    counts["completions"] = counts.pop("rows")
    return counts | {"rows": len(table), "computed": len(wanted) - len(there), "found": len(there)}


def _as_drawn(
    tokenizer: PreTrainedTokenizerBase, table: list[dict[str, Any]], drawn: Logprobs
) -> tuple[list[Rendered | None], dict[str, int]]:
    from trimtab.data.rendering import Rendered, prompt_tokens

    prompts = [prompt_tokens(tokenizer, row["prompt"]) for row in table]
    ids = [[drawn.of(row["id"], k)[0].tolist() for k in range(len(row["candidates"]))] for row in table]
    rendered = [
        Rendered(prompt, own, 0, False) if own else None
        for prompt, of_row in zip(prompts, ids, strict=True)
        for own in of_row
    ]
    return rendered, {"rows": sum(one is not None for one in rendered)}


def _compute(missing: dict[str, Rendered], source: ModelSpec, store: Store, *, compute: Compute) -> None:
    """This rank's share of what is missing into the store, the longest first."""
    from trimtab.models.features import batches_by_length
    from trimtab.models.language import LanguageModel, load_language
    from trimtab.progress import Meter
    from trimtab.training.world import world

    keys = list(missing)
    mine = world().share(batches_by_length([len(r.ids) for r in missing.values()], compute.inference_batch))
    meter = Meter(sum(map(len, mine)))
    if not mine:
        return
    language = LanguageModel(load_language(source, compute.cache), ends=frozenset(), batch=compute.inference_batch)
    for places in mine:
        batch = {keys[i]: missing[keys[i]] for i in places}
        scores = language.score([r.prompt_ids for r in batch.values()], [r.completion_ids for r in batch.values()])
        if not all(math.isfinite(p) for s in scores for p in s.logprobs):
            raise StageError(f"{source.source} gives completions log-probs that are not finite")
        store.put({k: s.logprobs for k, s in zip(batch, scores, strict=True)})
        meter.add(len(batch), sum(len(r.ids) for r in batch.values()))

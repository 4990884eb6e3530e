"""Stage reweigh: what a guide would do to the base's completions, without a sample of its own.

Importance weights of whole completions, self-normalised (Owen 2013, section 9.2): they are exact in the limit of many
completions, and of little worth where `effective_samples` is near 1. K completions of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.alignment import GuidedSpec
from trimtab.compute import Compute
from trimtab.errors import StageError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.generate import BASE, opened_together, sources_of
from trimtab.stages.outcome import write_outcome
from trimtab.stages.pairs import read_scores
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from trimtab.stages.logprobs import Logprobs


@stage(version=1, on="workers")
def reweigh(
    spec: GuidedSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    drawn: Path,
    truth: Path | None = None,
    helpers: Mapping[str, Path] | None = None,
) -> Metrics:
    """Of every prompt: kl_reweighted and effective_samples; of those in `truth`, whose gold reward may be used:
    gold_reweighted.

    `drawn` is the output of generate that drew the completions of `rows` from the base as it is. Raises StageError
    where a log-prob is not finite.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.policy_metrics import reweighted
    from trimtab.stages.logprobs import Logprobs
    from trimtab.training.world import world

    ranks, table, base = world(), read_jsonl(rows / ROWS), Logprobs(drawn)
    mine = ranks.share(table)
    own = _ratios(spec, mine, base, helpers or {}, compute=compute) if mine else {}
    ratios = {row_id: ratio_K for part in ranks.gather(own) for row_id, ratio_K in part.items()}
    gold = read_scores(truth) if truth else {}
    found = []
    for row_id in (row["id"] for row in table):
        weighed = reweighted(ratios[row_id], gold.get(row_id))
        known = {} if weighed.mean is None else {"gold_reweighted": weighed.mean}
        found.append({"id": row_id, "kl_reweighted": weighed.kl, "effective_samples": weighed.effective} | known)
    return write_outcome(out, found) if ranks.first else {}


def _ratios(
    spec: GuidedSpec, rows: list[dict[str, Any]], drawn: Logprobs, trained: Mapping[str, Path], *, compute: Compute
) -> dict[str, list[float]]:
    """Of every completion log p under base and helpers together, less that under the base: both read at once."""
    from trimtab.data.rendering import prompt_tokens
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.progress import Meter

    sources = sources_of(spec, None, trained)
    source = sources[BASE]
    tokenizer = load_tokenizer(model_folder(source.source, compute.cache, revision=source.revision))
    lm, meter, found = opened_together(spec, sources, compute), Meter(len(rows)), {}
    for start in range(0, len(rows), each := max(1, compute.inference_batch // spec.sampling.samples)):
        batch = rows[start : start + each]
        asked = [(row, k) for row in batch for k in range(len(row["candidates"]))]
        completions = [drawn.of(row["id"], k)[0].tolist() for row, k in asked]
        said = lm.ratio([prompt_tokens(tokenizer, row["prompt"]) for row, _ in asked], completions)
        for (row, k), ratio in zip(asked, said, strict=True):
            if not math.isfinite(ratio):
                raise StageError(f"row {row['id']}, completion {k}: the guide gives it log-probs that are not finite")
            found.setdefault(row["id"], []).append(ratio)
        meter.add(len(batch), sum(map(len, completions)))
    return found

"""Stage measure: a policy's samples of the test prompts: gold reward, length, distance to the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.alignment import KnownDistance, MeasureSpec
from trimtab.compute import Compute
from trimtab.errors import ModelError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import read_scores
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trimtab.models.token_table import Logprobs

Row = dict[str, Any]
SAMPLES = "samples.jsonl"


@stage(version=1, on="driver")
def measure(
    spec: MeasureSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    gold: Path,
    reference: Path,
    policy: Path | None = None,
) -> Metrics:
    """Of every prompt, in samples.jsonl: completions, their gold rewards, tokens, and log pi - log pi_reference.

    KL(policy || reference) in nats a completion is the mean of the latter over samples (k1), and the sum over tokens of
    r - 1 - log r with r = pi_reference / pi (k3). Without a policy's log-probs it is what a KnownDistance says.
    Raises ModelError where the two have other tokenizers.
    """
    from statistics import fmean

    from trimtab.data.tables import read_jsonl, write_jsonl
    from trimtab.policy_metrics import kl_estimates
    from trimtab.stages.logprobs import Logprobs

    golden, ours, theirs = read_scores(gold), Logprobs(policy or reference), Logprobs(reference)
    _same_tokenizer(ours, theirs)
    known = spec.kl if isinstance(spec, KnownDistance) else None
    table, said, said_before = [], [], []
    for row in read_jsonl(rows / ROWS):
        ours_KT, theirs_KT = (_logprobs(who, row) for who in (ours, theirs))
        said += ours_KT
        said_before += theirs_KT
        apart_K = [float((a - b).sum()) for a, b in zip(ours_KT, theirs_KT, strict=True)]
        kl_K = apart_K if policy else [known] * len(apart_K)
        table.append(_sampled(row) | {"gold": golden[row["id"]], "kl": kl_K, "tokens": list(map(len, ours_KT))})
    write_jsonl(out / SAMPLES, table)
    found = kl_estimates(said, said_before)
    distance = {"kl": found.k1, "kl_k3": found.k3} if policy else {} if known is None else {"kl": known}
    gold_mean = fmean(value for row in table for value in row["gold"])
    return {"rows": len(table), "gold": gold_mean, "tokens": fmean(map(len, said)), **distance}


def _same_tokenizer(ours: Logprobs, theirs: Logprobs) -> None:
    if ours.tokenizer != theirs.tokenizer:
        raise ModelError(
            f"the policy's tokenizer is not the reference's ({ours.tokenizer} and {theirs.tokenizer}): their distance "
            "is taken token by token, so use models with one vocabulary"
        )


def _logprobs(who: Logprobs, row: Row) -> list[NDArray[np.float64]]:
    """Of every token of every completion of a row."""
    return [who.of(row["id"], k)[1].double().numpy() for k in range(len(row["candidates"]))]


def _sampled(row: Row) -> Row:
    completions = [candidate["text"] for candidate in row["candidates"]]
    return {"id": row["id"], "prompt": row["prompt"], "completions": completions}

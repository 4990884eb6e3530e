"""Stage measure: a policy's samples of the test prompts: gold reward, length, distance to the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Sampled:
    """A prompt's samples: log-probs of every token by policy and reference, and log pi - log pi_reference of each."""

    row: dict[str, Any]
    ours_KT: list[NDArray[np.float64]]
    theirs_KT: list[NDArray[np.float64]]
    kl: list[float | None]

    @property
    def tokens(self) -> list[int]:
        return list(map(len, self.ours_KT))


def sampled(spec: MeasureSpec, rows: Path, *, reference: Path, policy: Path | None) -> Iterator[Sampled]:
    """Every prompt of `rows`. Raises ModelError where policy and reference have other tokenizers."""
    from trimtab.data.tables import read_jsonl
    from trimtab.stages.logprobs import Logprobs

    ours, theirs = Logprobs(policy or reference), Logprobs(reference)
    if ours.tokenizer != theirs.tokenizer:
        raise ModelError(
            f"the policy's tokenizer is not the reference's ({ours.tokenizer} and {theirs.tokenizer}): their distance "
            "is taken token by token, so use models with one vocabulary"
        )
    known = spec.kl if isinstance(spec, KnownDistance) else None
    for row in read_jsonl(rows / ROWS):
        ours_KT, theirs_KT = (
            [who.of(row["id"], k)[1].double().numpy() for k in range(len(row["candidates"]))] for who in (ours, theirs)
        )
        kl = [known if policy is None else float((a - b).sum()) for a, b in zip(ours_KT, theirs_KT, strict=True)]
        yield Sampled(row, ours_KT, theirs_KT, kl)


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

    from trimtab.data.tables import write_jsonl
    from trimtab.policy_metrics import kl_estimates

    golden = read_scores(gold)
    found = list(sampled(spec, rows, reference=reference, policy=policy))
    table = [
        {
            "id": one.row["id"],
            "prompt": one.row["prompt"],
            "completions": [candidate["text"] for candidate in one.row["candidates"]],
            "gold": golden[one.row["id"]],
            "kl": one.kl,
            "tokens": one.tokens,
        }
        for one in found
    ]
    write_jsonl(out / SAMPLES, table)
    apart = kl_estimates([a for one in found for a in one.ours_KT], [b for one in found for b in one.theirs_KT])
    known = spec.kl if isinstance(spec, KnownDistance) else None
    distance = {"kl": apart.k1, "kl_k3": apart.k3} if policy else {} if known is None else {"kl": known}
    return {
        "rows": len(table),
        "gold": fmean(value for row in table for value in row["gold"]),
        "tokens": fmean(tokens for one in found for tokens in one.tokens),
        **distance,
    }

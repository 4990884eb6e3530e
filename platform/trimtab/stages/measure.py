"""Stage measure: a policy's samples of the test prompts: gold reward, length, distance to the reference."""

from __future__ import annotations

from pathlib import Path

from trimtab.alignment import MeasureSpec
from trimtab.compute import Compute
from trimtab.errors import ModelError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import read_scores
from trimtab.stages.prepare import ROWS

SAMPLES = "samples.jsonl"


@stage(version=1, on="driver")
def measure(
    spec: MeasureSpec, out: Path, *, compute: Compute, rows: Path, gold: Path, policy: Path, reference: Path
) -> Metrics:
    """Of every prompt, in samples.jsonl: completions, their gold rewards, tokens, and log pi - log pi_reference.

    KL(policy || reference) in nats a completion is the mean of the latter over samples (k1), and the sum over tokens of
    r - 1 - log r with r = pi_reference / pi (k3). Raises ModelError where the two have other tokenizers.
    """
    import numpy as np

    from trimtab.data.tables import read_jsonl, write_jsonl
    from trimtab.stages.logprobs import Logprobs

    golden, ours, theirs = read_scores(gold), Logprobs(policy), Logprobs(reference)
    if ours.tokenizer != theirs.tokenizer:
        raise ModelError(
            f"the policy's tokenizer is not the reference's ({ours.tokenizer} and {theirs.tokenizer}): their distance "
            "is taken token by token, so use models with one vocabulary"
        )
    table, k3 = [], []
    for row in read_jsonl(rows / ROWS):
        ratios = [
            (ours.of(row["id"], k)[1] - theirs.of(row["id"], k)[1]).double().numpy()
            for k in range(len(row["candidates"]))
        ]
        k3 += [float((np.exp(-ratio) - 1 + ratio).sum()) for ratio in ratios]
        table.append(
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "completions": [candidate["text"] for candidate in row["candidates"]],
                "gold": golden[row["id"]],
                "kl": [float(ratio.sum()) for ratio in ratios],
                "tokens": [len(ratio) for ratio in ratios],
            }
        )
    write_jsonl(out / SAMPLES, table)
    joined = {name: [value for row in table for value in row[name]] for name in ("gold", "kl", "tokens")}
    return {
        "rows": len(table),
        "gold": float(np.mean(joined["gold"])),
        "kl": float(np.mean(joined["kl"])),
        "kl_k3": float(np.mean(k3)),
        "tokens": float(np.mean(joined["tokens"])),
    }

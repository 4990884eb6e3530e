"""A stage that ran out of memory runs again with half the rows at once; what it finds is the same but for rounding.

The rows of one optimiser step stay as many: half the micro-batch is twice the accumulation.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.errors import OutOfMemory
from trimtab.progress import Sink
from trimtab.run.artifact import Node
from trimtab.run_log import clear
from trimtab.stages._base import Metrics
from trimtab.training.postmortem import WAYS, out_of_memory
from trimtab.training.zero import batching

LAST = "it ran out of memory with {rows} at once, and fewer there cannot be"


def smaller(compute: Compute, spec: Any) -> Compute | None:
    """With half the rows at once; None where there is one, or where an objective has to see all together.

    For a training that is the micro-batch of the fewest workers there may be, and with it what it evaluates at once.
    It goes on from the checkpoints of before: `resume` says what to begin with.
    """
    less = {"inference_batch": max(1, compute.inference_batch // 2), "resume": "auto"}
    batch_size = getattr(spec, "batch_size", None)
    if batch_size is None:
        return compute.model_copy(update=less) if compute.inference_batch > 1 else None
    micro = batching(batch_size, compute.sizes[0], compute.micro_batch).micro
    if micro == 1 or getattr(getattr(spec, "objective", None), "sorts", False):
        return None
    return compute.model_copy(update=less | {"micro_batch": micro // 2})


def falling_back(
    call: Callable[[Node, Path, Compute], Metrics], compute: Compute, sink: Sink
) -> Callable[[Node, Path], Metrics]:
    """The call, of a stage for workers made again with less at once for as long as it runs out of memory.

    Raises OutOfMemory where less there cannot be.
    """

    def made(node: Node, out: Path) -> Metrics:
        now = compute
        while True:
            try:
                return call(node, out, now)
            except Exception as error:
                full = isinstance(error, OutOfMemory) or out_of_memory(type(error).__name__, str(error))
                if not full or node.stage.on == "driver":
                    raise
                less = smaller(now, node.spec)
                if less is None:
                    raise _last(node, now, error) from error
                why = str(error)
            gc.collect()
            clear(out)
            sink(_retried(node, now, less, why))
            now = less

    return made


def _rows(node: Node, compute: Compute) -> dict[str, int]:
    """What is held at once, of a training by the fewest workers: its micro-batch, and how many of them make a step."""
    batch_size = getattr(node.spec, "batch_size", None)
    if batch_size is None:
        return {"inference_batch": compute.inference_batch}
    batch = batching(batch_size, compute.sizes[0], compute.micro_batch)
    return {"micro_batch": batch.micro, "accumulation": batch.accumulation}


def _retried(node: Node, before: Compute, now: Compute, why: str) -> dict[str, Any]:
    name, held = next(iter(_rows(node, before).items()))
    rows = _rows(node, now)
    text = f"out of memory with {name} {held}; again with {rows[name]}"
    told = {"event": "stage_retry", "time": time.time(), "stage_id": node.artifact.id, "label": node.label}
    return told | {"cause": "out of memory", "why": why, "text": text, **rows}


def _last(node: Node, compute: Compute, error: Exception) -> OutOfMemory:
    name, held = next(iter(_rows(node, compute).items()))
    text = LAST.format(rows=f"{name} {held}")
    way = "" if isinstance(error, OutOfMemory) and WAYS["out of memory"] in str(error) else f"; {WAYS['out of memory']}"
    last = OutOfMemory(f"{text}: {error}{way}")
    last.rank, last.logs = getattr(error, "rank", 0), getattr(error, "logs", {})
    return last

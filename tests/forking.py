"""Processes of their own that need not import for seconds: forked from one that has, and that does nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["transformers.models.llama.modeling_llama", "trimtab.models.language"])


def start(call: Callable[..., None], *arguments: Any) -> Any:
    """A process that makes this call and ends."""
    process = CONTEXT.Process(target=call, args=arguments, daemon=True)
    process.start()
    return process

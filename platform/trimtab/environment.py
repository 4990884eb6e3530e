"""Settings that must stand before torch, DeepSpeed and the hub libraries are imported; what the user set wins."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def settle(threads: int = 1) -> None:
    """Few threads that sleep while they wait (spinning ones cost a shared machine most of its speed), no telemetry,

    one place for DeepSpeed's compiled ops, and the ninja that built them: another builds them again, for a minute.
    """
    tools, path = str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != tools:
        os.environ["PATH"] = os.pathsep.join(filter(None, [tools, path]))
    own = sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)
    home = Path(sys.prefix) if own else Path.home() / ".cache"
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_EXTENSIONS_DIR": str(home / "torch_extensions"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

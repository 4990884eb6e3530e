"""What a split consists of, so that two of them can be compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from trimtab.data.splits import R, Splits
from trimtab.data.tables import Candidates, Row


def manifest(splits: Splits[R]) -> dict[str, dict[str, Any]]:
    """For each split, and each hop where there are several: rows, rows of each class, sha256 of the sorted ids."""
    named = {"supervise": splits.supervise, "transfer": splits.transfer, "test": splits.test}
    if len(splits.hops) > 1:
        named |= {f"transfer.{i}": hop for i, hop in enumerate(splits.hops)}
    return {
        name: {
            "n": len(rows),
            "classes": dict(sorted(Counter(str(row.label) for row in rows if _labelled(row)).items())),
            "sha256": hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest(),
        }
        for name, rows in named.items()
    }


def _labelled(row: Row | Candidates) -> bool:
    return isinstance(row, Row) and row.label is not None

"""What a panel is: several judges' probabilities into one.

J judges, N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.spec import Method

if TYPE_CHECKING:
    from torch import Tensor


class Panel(Method):
    """How judges decide together."""

    def __call__(self, probs_JNC: Tensor) -> Tensor:
        """probs_NC of the panel."""
        raise TypeError(f"{type(self).__name__} decides nothing")

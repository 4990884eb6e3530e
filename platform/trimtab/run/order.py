"""In which order stages of a plan start."""

from __future__ import annotations

import heapq

from trimtab.run.artifact import Node


def urgency(nodes: list[Node]) -> dict[str, int]:
    """For each node the length of the longest chain of stages that waits for it."""
    height: dict[str, int] = {}
    for node in reversed(nodes):
        height.setdefault(node.artifact.id, 0)
        for need in node.needs.values():
            height[need.id] = max(height.get(need.id, 0), height[node.artifact.id] + 1)
    return height


class Order:
    """Which missing stages can start: those whose inputs are there, the longest chain behind them first."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.artifact.id: node for node in nodes}
        self.height, self.places = urgency(nodes), {stage_id: i for i, stage_id in enumerate(self.nodes)}
        self.unmet = {n.artifact.id: {a.id for a in n.needs.values()} & set(self.nodes) for n in nodes}
        self.waits_for: dict[str, list[str]] = {}
        for stage_id, needs in self.unmet.items():
            for need in needs:
                self.waits_for.setdefault(need, []).append(stage_id)
        self.ready: dict[str, list[tuple[int, int, str]]] = {"driver": [], "workers": []}
        self.left = len(nodes)
        for stage_id, needs in self.unmet.items():
            if not needs:
                self._offer(stage_id)

    def _offer(self, stage_id: str) -> None:
        heapq.heappush(
            self.ready[self.nodes[stage_id].stage.on], (-self.height[stage_id], self.places[stage_id], stage_id)
        )

    def take(self, on: str) -> Node | None:
        """The most urgent stage that can start there."""
        if not self.ready[on]:
            return None
        self.left -= 1
        return self.nodes[heapq.heappop(self.ready[on])[-1]]

    def done(self, node: Node) -> None:
        for stage_id in self.waits_for.get(node.artifact.id, ()):
            self.unmet[stage_id].discard(node.artifact.id)
            if not self.unmet[stage_id]:
                self._offer(stage_id)

"""What is measured of requests, in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trimtab.serving.answer import Spent, State

FIRST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
EACH = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Meters:
    """Counters of one ingress replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared = {"namespace": "trimtab", "registry": self.registry}
        self.requests = Counter(
            "requests", "Requests by path, model and status.", ["path", "model", "status"], **shared
        )
        self.tokens = Counter("tokens", "Tokens that models read or wrote.", ["ensemble", "model", "kind"], **shared)
        self.first = Histogram("time_to_first_token_seconds", "Until text came.", ["model"], buckets=FIRST, **shared)
        self.each = Histogram("time_per_token_seconds", "Between tokens.", ["model"], buckets=EACH, **shared)
        self.in_flight = Gauge("completions_in_flight", "Completions under way.", ["ensemble"], **shared)
        self.queued = Gauge("completions_queued", "Completions that wait to be let in.", ["ensemble"], **shared)
        self.slots = Gauge("slots", "Slots of a replica.", ["ensemble"], **shared)
        self.slots_in_use = Gauge("slots_in_use", "Slots of a replica with a completion.", ["ensemble"], **shared)
        self.waiting = Gauge("completions_waiting", "Completions that wait for a slot.", ["ensemble"], **shared)

    def spent(self, ensemble: str, spent: Spent) -> None:
        """What an answer cost."""
        for model, counts in spent.members.items():
            for kind, count in counts.items():
                self.tokens.labels(ensemble, model, kind).inc(count)

    def state(self, ensemble: str, state: State) -> None:
        """How an ensemble stands."""
        self.slots.labels(ensemble).set(state.slots)
        self.slots_in_use.labels(ensemble).set(state.in_use)
        self.waiting.labels(ensemble).set(state.waiting)

    def text(self) -> bytes:
        """For Prometheus."""
        return generate_latest(self.registry)

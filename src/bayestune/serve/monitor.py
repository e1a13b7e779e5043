"""What Prometheus is told: latency, queue, batches, and uncertainty against the training's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bayestune.metrics.drift import BINS, SCORES, rank, stability_index
from bayestune.serve.rows import Row

#: Rows over which drift is measured, and the fewest that show any.
WINDOW, FEWEST = 1000, 100
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1, 1.5, 2, 3, 5)


class Monitor:
    """Counts what the server does.

    Args:
        references: quantiles of scores by run and score, as runs store them.
    """

    def __init__(self, references: Mapping[str, Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self._references = references
        self._ranks: dict[tuple[str, str], deque[float]] = {}

        def make(kind: Any, name: str, help: str, labels: Sequence[str] = (), **more: Any) -> Any:
            return kind(f"bayestune_{name}", help, labels, registry=self.registry, **more)

        self.requests = make(Counter, "requests", "Requests by path and status.", ("path", "code"))
        self.seconds = make(
            Histogram, "request_seconds", "Time to answer.", ("path",), buckets=_SECONDS
        )
        self.queue = make(Gauge, "queue_rows", "Rows that wait for a pass.")
        self.waited = make(
            Histogram, "queue_seconds", "Time a row waits.", ("model",), buckets=_SECONDS
        )
        self.batches = make(Histogram, "batch_rows", "Rows of a pass.", ("model",), buckets=_ROWS)
        self.took = make(
            Histogram, "batch_seconds", "Time of a pass.", ("model",), buckets=_SECONDS
        )
        self.tokens = make(Counter, "tokens", "Tokens read.", ("model",))
        self.abstained = make(Counter, "abstained_rows", "Rows not answered.", ("model",))
        self.sizes = make(Histogram, "set_size", "Classes in a set.", ("model",), buckets=_ROWS)
        self.scores = make(
            Histogram, "score", "Entropies of answers, in nats.", ("model", "score"), buckets=_NATS
        )
        shares = [b / BINS for b in range(1, BINS + 1)]
        self.shares = make(
            Histogram,
            "reference_rank",
            "Share of the reference rows below an answer's score; uniform without drift.",
            ("model", "score"),
            buckets=shares,
        )
        self.drift = make(
            Gauge,
            "drift",
            f"Population stability index of the last {WINDOW} answers' ranks, in nats.",
            ("model", "score"),
        )

    def passed(self, run: str, rows: Sequence[Row], waited: Sequence[float], took: float) -> None:
        """Count a pass."""
        self.batches.labels(run).observe(len(rows))
        self.took.labels(run).observe(took)
        self.tokens.labels(run).inc(sum(row.length for row in rows))
        for seconds in waited:
            self.waited.labels(run).observe(seconds)

    def answered(self, run: str, answers: Iterable[Mapping[str, Any]]) -> None:
        """Count answers and where their uncertainty stands."""
        reference = self._references.get(run, {})
        for answer in answers:
            if answer.get("abstain"):
                self.abstained.labels(run).inc()
            if "set" in answer:
                self.sizes.labels(run).observe(len(answer["set"]))
            for score in SCORES:
                if score not in answer:
                    continue
                if score in ("entropy", "epistemic") and "probs" in answer:
                    self.scores.labels(run, score).observe(answer[score])
                points = reference.get(score)
                place = None if points is None else rank(answer[score], points)
                if place is not None:
                    self.shares.labels(run, score).observe(place)
                    kept = self._ranks.setdefault((run, score), deque(maxlen=WINDOW))
                    kept.append(place)

    def render(self, queued: int) -> bytes:
        """Return everything in Prometheus's text format."""
        self.queue.set(queued)
        for (run, score), kept in self._ranks.items():
            if len(kept) >= FEWEST:
                self.drift.labels(run, score).set(stability_index(list(kept)))
        return generate_latest(self.registry)

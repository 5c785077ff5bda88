"""Metrics of several processes made into one set, as if one process had counted everything.

Counters and histograms are added. So are gauges, which say what a process holds (connections, what waits);
but of a description (`.._info`) and of a moment (`.._timestamp_seconds`) the greatest stands for all, and of
when something began to be counted (`.._created`) the least.
Numbers that every process would tell alike, those of the database, do not belong in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

Family = dict[str, Any]
"""A metric as JSON: `name`, `told` (its help), `kind`, and `samples`, each `[name, labels, value]`."""

_LASTING: Final = frozenset(("counter", "histogram"))
_GREATEST: Final = ("_info", "_timestamp_seconds")
_LEAST: Final = "_created"


def to_families(metrics: Iterable[Metric]) -> list[Family]:
    """What one process counted, to be sent to another."""
    return [
        {
            "name": metric.name,
            "told": metric.documentation,
            "kind": metric.type,
            "samples": [[one.name, one.labels, one.value] for one in metric.samples],
        }
        for metric in metrics
    ]


def to_metrics(families: Iterable[Family]) -> list[Metric]:
    """The way back."""
    metrics = []
    for family in families:
        metric = Metric(family["name"], family["told"], family["kind"])
        metric.samples = [Sample(name, labels, value) for name, labels, value in family["samples"]]
        metrics.append(metric)
    return metrics


def lasting(families: Iterable[Family]) -> list[Family]:
    """What of a process still counts when it is gone."""
    return [family for family in families if family["kind"] in _LASTING]


def merged(processes: Iterable[Sequence[Family]]) -> list[Family]:
    """One set of all, in the order in which families and labels were first seen."""
    found: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for families in processes:
        for family in families:
            name = family["name"]
            found.setdefault(name, family)
            known = values.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                key = sample, tuple(labels.items())
                if key not in known:
                    known[key] = value
                elif sample.endswith(_GREATEST):
                    known[key] = max(known[key], value)
                elif sample.endswith(_LEAST):
                    known[key] = min(known[key], value)
                else:
                    known[key] += value
    return [
        {
            **family,
            "samples": [[sample, dict(labels), value] for (sample, labels), value in values[name].items()],
        }
        for name, family in found.items()
    ]

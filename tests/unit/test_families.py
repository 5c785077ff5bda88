"""Numbers of several processes as those of one."""

from __future__ import annotations

from typing import Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from convsync.observe.families import Family, lasting, merged, to_families, to_metrics


def process(requests: dict[str, int], waiting: int, began: float, version: str = "1") -> list[Family]:
    counter = CounterMetricFamily("requests", "Requests.", labels=["status"])
    for status, count in requests.items():
        counter.add_metric([status], count)
    seconds = HistogramMetricFamily("seconds", "Seconds.")
    seconds.add_metric([], [("1.0", 1), ("+Inf", sum(requests.values()))], 2.5)
    info = GaugeMetricFamily("build_info", "What runs.", labels=["version"])
    info.add_metric([version], 1)
    families: list[Metric] = [
        info,
        counter,
        seconds,
        GaugeMetricFamily("waiting", "What waits.", value=waiting),
        GaugeMetricFamily("began_timestamp_seconds", "When.", value=began),
    ]
    # As it travels.
    sent: list[Family] = orjson.loads(orjson.dumps(to_families(families)))
    return sent


def text(families: list[Family]) -> str:
    class Told(Collector):
        def collect(self) -> list[Metric]:
            return to_metrics(families)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Told())
    return generate_latest(registry).decode()


def values(families: list[Family]) -> dict[str, Any]:
    lines = [line.rpartition(" ") for line in text(families).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_counters_histograms_and_what_is_held_add_up_and_descriptions_do_not() -> None:
    both = merged([process({"200": 3, "503": 1}, 2, 100.0), process({"200": 4, "400": 5}, 1, 90.0)])
    assert values(both) == {
        'build_info{version="1"}': 1,
        'requests_total{status="200"}': 7,
        'requests_total{status="503"}': 1,
        'requests_total{status="400"}': 5,
        'seconds_bucket{le="1.0"}': 2,
        'seconds_bucket{le="+Inf"}': 13,
        "seconds_count": 13,
        "seconds_sum": 5,
        "waiting": 3,
        "began_timestamp_seconds": 100,
    }


def test_counting_began_when_the_first_process_began_to_count() -> None:
    def counted(created: float) -> list[Family]:
        family = CounterMetricFamily("calls", "Calls.")
        family.add_metric([], 1, created=created)
        return to_families([family])

    (family,) = merged([counted(20.0), counted(10.0)])
    assert family["samples"] == [["calls_total", {}, 2], ["calls_created", {}, 10.0]]


def test_two_releases_that_run_side_by_side_are_both_described() -> None:
    both = values(merged([process({}, 0, 1.0), process({}, 0, 1.0, version="2")]))
    assert (both['build_info{version="1"}'], both['build_info{version="2"}']) == (1, 1)


def test_what_one_process_tells_is_told_unchanged() -> None:
    alone = process({"200": 3}, 2, 100.0)
    assert text(merged([alone])) == text(alone)
    assert "# HELP requests_total Requests.\n# TYPE requests_total counter\n" in text(alone)


def test_of_a_process_that_is_gone_its_counts_stay_and_what_it_held_does_not() -> None:
    gone = lasting(process({"200": 3}, 2, 100.0))
    assert {family["name"] for family in gone} == {"requests", "seconds"}
    again = merged([gone, process({"200": 1}, 5, 100.0)])
    assert values(again)['requests_total{status="200"}'] == 4
    assert values(again)["waiting"] == 5


def test_merging_changes_none_of_its_parts() -> None:
    one, other = process({"200": 1}, 1, 1.0), process({"200": 2}, 1, 1.0)
    before = orjson.dumps([one, other])
    first = merged([one, other])
    assert orjson.dumps([one, other]) == before
    assert merged([one, other]) == first

"""The aggregate as a Prometheus page: text format, or OpenMetrics (with exemplars) for a scraper that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from qm_proxy.telemetry.metrics import Histogram, Metrics, Series
from qm_proxy.telemetry.names import LABELS, prometheus_name

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

__all__ = ["Page", "page"]


class Page(NamedTuple):
    content_type: str
    body: bytes


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        for series in self._metrics.series():
            if series.values:
                yield _family(series)


def _family(series: Series) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.samples import Exemplar

    name, text = prometheus_name(series.key), series.metric.description
    labels = [LABELS[label] for label in series.metric.labels]
    if series.metric.kind == "histogram":
        family = HistogramMetricFamily(name, text, labels=labels)
        edges = [*map(_edge, series.metric.buckets), "+Inf"]
        for values, histogram in sorted(series.values.items()):
            assert isinstance(histogram, Histogram)
            running = 0
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for place, edge in enumerate(edges):
                running += histogram.counts[place]
                seen = histogram.exemplars.get(place)
                buckets.append(
                    (edge, running)
                    if seen is None
                    else (edge, running, Exemplar({"trace_id": seen.trace_id}, seen.value, seen.at))
                )
            family.add_metric(list(values), buckets, histogram.total)
        return family
    plain = (CounterMetricFamily if series.metric.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for values, value in sorted(series.values.items()):
        assert not isinstance(value, Histogram)
        plain.add_metric(list(values), value)
    return plain


def _edge(value: float) -> str:
    return repr(float(value))


def page(metrics: Metrics, accept: str) -> Page:
    """The exposition for a scraper with this Accept header."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    encode, content_type = choose_encoder(accept)
    return Page(content_type, encode(registry))

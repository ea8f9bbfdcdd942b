"""The table is whole, its profiles differ where the conventions do, and Prometheus can spell it."""

from __future__ import annotations

import re

import pytest

from qm_proxy.telemetry.names import (
    ATTRIBUTES,
    METRICS,
    PROFILES,
    attribute,
    metric_name,
    profile_from_environment,
    prometheus_name,
)


def test_every_label_is_in_the_table() -> None:
    assert {label for metric in METRICS.values() for label in metric.labels} <= set(ATTRIBUTES)


@pytest.mark.parametrize("profile", PROFILES)
def test_names_are_unique_in_each_profile(profile: str) -> None:
    names = [a.name(profile) for a in ATTRIBUTES.values()]  # type: ignore[arg-type]
    given = [n for n in names if n is not None]
    assert len(given) == len(set(given))
    metrics = [m.name(profile) for m in METRICS.values()]  # type: ignore[arg-type]
    assert len(metrics) == len(set(metrics))


def test_profiles_differ_where_the_conventions_do() -> None:
    assert attribute("provider") == "gen_ai.provider.name"
    assert attribute("provider", "legacy-1.36") == "gen_ai.system"
    assert attribute("stream", "legacy-1.36") is None
    assert metric_name("operation_duration", "genai-next") == "gen_ai.client.inference.duration"


@pytest.mark.parametrize("key", METRICS)
def test_prometheus_can_spell_it(key: str) -> None:
    assert re.fullmatch(r"[a-z_][a-z0-9_]*", prometheus_name(key))


def test_buckets_rise() -> None:
    for metric in METRICS.values():
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


@pytest.mark.parametrize(
    ("variable", "profile"),
    [("", "genai-current"), ("gen_ai_latest_experimental", "genai-current"), ("http,qm/genai-next", "genai-next")],
)
def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch, variable: str, profile: str) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", variable)
    assert profile_from_environment() == profile


def test_prometheus_names_are_those_a_collector_makes() -> None:
    """A unit in braces vanishes, a rate says per_second, `ratio` is for gauges only."""
    assert prometheus_name("decode_rate") == "qm_decode_rate_per_second"
    assert prometheus_name("token_usage") == "gen_ai_client_token_usage"
    assert prometheus_name("window_fill") == "qm_context_fill"
    assert prometheus_name("loaded") == "qm_model_memory_bytes"
    assert prometheus_name("cpu") == "qm_self_cpu_seconds"

"""The settings of the log and of exported telemetry.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """The log and OpenTelemetry."""

    __slots__ = ()

    log_level: str = setting(
        "info",
        "Lowest level that is logged. `info` by default, because relay logs single streams at `debug`.",
        "debug|info|warning|error",
    )
    log_format: str = setting(
        "auto", "Form of the log. `auto`, the default, is text on a terminal, otherwise JSON.", "auto|text|json"
    )
    otlp_url: str = setting(
        "",
        "Base URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318. relay sends it the "
        "metrics, and spans of publish requests whose `traceparent` is sampled.",
        "text",
        "URL",
    )
    otlp_interval_s: float = setting(
        60.0,
        "Time between two exports of the metrics to otlp-url. 60 seconds by default, as in other programs with "
        "OpenTelemetry.",
        "duration",
        least=1,
    )

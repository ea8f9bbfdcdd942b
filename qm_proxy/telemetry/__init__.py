"""Record → OpenTelemetry."""

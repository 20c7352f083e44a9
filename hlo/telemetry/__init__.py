"""What HLO tells about itself: metrics for Prometheus, spans for OpenTelemetry. Never a patient's word."""

"""What runs beside HLO: Prometheus with its alerts, Jaeger, and Grafana with the dashboard that is made here."""

"""HLO on Ray Serve; docs/scaling.md says how."""

"""HLO's tests."""

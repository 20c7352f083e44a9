"""Faults, each on a real server process."""

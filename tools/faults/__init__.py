"""Faults on purpose: what is left of a run that is killed, starved, damaged or disturbed."""

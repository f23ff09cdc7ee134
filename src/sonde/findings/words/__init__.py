"""Wording of numbers, sites, levels and the next step."""

"""Findings of a scan. Each file holds a code, its rule, its sentence and a fault that shows it."""

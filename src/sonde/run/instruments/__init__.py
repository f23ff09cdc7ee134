"""Instruments that a user asks for: catalogue of methods, entries in headers, tasks, stages."""

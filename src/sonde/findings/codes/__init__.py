"""A file for each code: its rule, its sentence and a fault that shows it."""

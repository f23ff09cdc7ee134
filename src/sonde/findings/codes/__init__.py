"""A file for each code: its rule, its sentence, and a test case that triggers it."""

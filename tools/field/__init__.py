"""sonde on models and data that nobody here made: jobs, planted faults, a table, a page."""

"""Change a model and judge the change by four numbers."""

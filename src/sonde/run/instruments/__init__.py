"""What is asked for: the catalogue of methods, their entries in headers, tasks and stages."""

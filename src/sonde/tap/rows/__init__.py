"""Raw outputs to rows: which tokens count, what is averaged, where it is kept."""

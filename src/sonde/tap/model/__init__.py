"""Facts about a model: its sites, axes, head and hash, found by probe forward passes."""

"""What a model is: its sites, axes, head and hash, found by probe forwards."""

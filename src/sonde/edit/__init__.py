"""Change what a model computes: its activations, its next tokens, its weights."""

__all__: list[str] = []

"""What a change of a model does, in four numbers."""

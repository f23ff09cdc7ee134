"""From a model and data, as typed by a user, to one lazy stream of hidden states."""

"""Turn a model and data, as the user names them, into one lazy stream of hidden states."""

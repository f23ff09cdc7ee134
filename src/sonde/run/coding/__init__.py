"""Files coded without loss by a model that predicts them."""

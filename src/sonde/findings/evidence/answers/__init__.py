"""Labels of the data, and the model's answers to compare with them."""

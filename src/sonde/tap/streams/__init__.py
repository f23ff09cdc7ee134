"""A live model over inputs as a stream of rows."""

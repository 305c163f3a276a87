"""Schedule rules that take any kernel of a kind."""

"""Tasks: what a model is adapted to do, from its rows to what its outputs are worth."""

"""One runtime, one file: from a folded model to what an inference runtime loads."""

"""One proof, one file: what is measured on an export against the dense baseline."""

"""The bridge: a trained model becomes a packed file, checked against it."""

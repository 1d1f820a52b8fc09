"""The port that hospitals reach: gate, door, limits, TLS."""

"""Data sets: finding, reading and decoding them, in memory or streamed."""

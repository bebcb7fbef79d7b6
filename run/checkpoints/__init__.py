"""Checkpoints: complete or absent directories, and the formats of other libraries."""

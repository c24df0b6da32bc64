"""Datasets: immutable, hashed snapshots of rankings, and their download."""

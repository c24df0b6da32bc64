"""Runs: the queue of work for workers; it knows no run's meaning."""

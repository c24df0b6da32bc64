"""Loop: rounds: what starts a run and what a finished run leads to."""

"""Projects: guidelines, K, ties, labels, overlap, sampling settings."""

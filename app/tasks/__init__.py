"""Tasks: which task next, leases, skip, expiry, display order, overlap."""

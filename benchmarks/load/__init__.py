"""What the load benchmarks share: tables filled in SQL, k6 and its script, what processes cost, and the audit."""

"""Registry: model versions, their lineage, which one is live."""

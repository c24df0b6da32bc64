"""The schema's history, oldest first. One idea a file; additive first, removal in a later release."""

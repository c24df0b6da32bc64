"""Writing: ideal answers and prompts by people, and their review."""

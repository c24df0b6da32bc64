"""Prompts: prompts, completions, demonstrations, and their import."""

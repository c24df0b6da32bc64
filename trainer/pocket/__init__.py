"""The pocket model: a small world of generated text, its true utility, and the language model trained on it."""

"""Corpora: texts and worked examples that models learn from beside rankings."""

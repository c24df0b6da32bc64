"""Accounts: people, roles, sign-in, sessions, API tokens, audit log."""

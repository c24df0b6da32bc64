"""Webhooks: other programs are told of milestones, finished runs and promotions."""

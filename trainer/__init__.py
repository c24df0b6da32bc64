"""The trainer: sampling, reward models and PPO, on any machine with torch. It speaks to the app through `trainer.client` alone."""

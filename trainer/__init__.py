"""The trainer: sampling, reward models and PPO, on any machine with torch. `trainer.client` alone speaks to the app."""

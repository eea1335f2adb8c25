"""The optimizer step, and its users: training, replay, retraining, and recording a user's loop."""

"""The optimizer step, and everything that takes it: training, replay, retraining, recording a loop."""

"""Certified machine unlearning: sensitivity, noise, privacy accounting and the declaration of a run."""

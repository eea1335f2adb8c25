"""Evaluation: how near an unlearned model is to retraining, and the report that says so."""

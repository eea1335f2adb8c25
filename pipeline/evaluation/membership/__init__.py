"""Membership inference: is a deleted sample still recognised as one the model was trained on?

The target is one half, and the retrained model's own value: an attack that fares no better on the
unlearned model than on the retrained one has found nothing that retraining would have removed.
"""

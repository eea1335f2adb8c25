"""Membership inference attacks: can a deleted sample be told from one the model was not trained on?

The reference is an area of one half, and the retrained model's own value: an attack that does no better
on the unlearned model than on the retrained one has found nothing that retraining would remove.
"""

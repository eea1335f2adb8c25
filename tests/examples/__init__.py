"""What a user brings: a network by "module:factory", and a training loop."""

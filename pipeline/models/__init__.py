"""Networks by name, activations, and the user's own networks."""

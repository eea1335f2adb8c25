"""Networks by name, activations, and how a user's own network is found."""

"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray."""

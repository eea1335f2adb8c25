"""One vector for each unit: the recursion, in blocks, stored, and continued by a repair."""

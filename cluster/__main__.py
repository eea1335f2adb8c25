"""`python -m cluster` is `unlearn`."""

from cluster.cli import main

main()

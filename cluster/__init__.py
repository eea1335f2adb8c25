"""cluster knows machines: planning, scheduling, Ray actors and the command line."""

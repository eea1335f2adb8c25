"""cluster knows machines: planning, scheduling, Ray actors and the command line."""

import os

# Ray reads these when it is imported, so they are set before any of our modules does that: every
# cluster that we start asks everyone for a token, and nothing is reported to Ray's makers.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray started here then takes 127.0.0.1 for the node's address and listens nowhere else; a cluster
# that is joined keeps its own addresses.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# What actors get, for work in this process: cuBLAS reads it when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

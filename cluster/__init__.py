"""cluster knows machines: planning, scheduling, Ray actors and the command line."""

import os

# Ray reads these when it is imported, so they are set before any of our modules does that: every
# cluster that we start asks everyone for a token, and nothing is reported to Ray's makers.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

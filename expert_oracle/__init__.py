"""Whoever knows better: experts that act, labelers that judge, the gRPC expert service and its client.

May import `tutelage`. No ray; torch only where a checkpoint is loaded.
"""

import os

# gRPC's C core repeats on stderr what Python's errors say, and warns of forks that Ray makes before any call.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

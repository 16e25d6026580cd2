"""The command line. It prints; the library does not.

Exit codes: 0 done, 1 a gate or the verification failed, 2 bad input, 3 an internal error,
130 interrupted.
"""

from onnxprune.cli import bench, data, look, probe, prune, train  # noqa: F401  (they join the application)
from onnxprune.cli.shell import app, main

__all__ = ["app", "main"]

"""Settings of the whole test run."""

import os

# One thread a worker: pytest -n 2 fills the machine. Must be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("onnxprune", deadline=None, derandomize=True)
settings.load_profile("onnxprune")

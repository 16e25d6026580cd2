"""How often two copies of one model come out as different: it should be at most one in twenty.

    python -m benchmarks.noise MODEL [MODEL ...] [--repeats 8]

Times three copies of each model as `onnxprune bench` does. Beside the verdict that it gives, the
one that it would give if all runs were of one session is counted: why there are phases.
"""

import argparse
from pathlib import Path

import numpy as np

from onnxprune.passes import benchmark as measured
from onnxprune.subjects import Wanted, feeds_of, subjects

COPIES = 3


def main() -> None:
    """Count differences that are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=8)
    given = parser.parse_args()
    for path in given.models:
        with subjects([path]) as found:
            feeds = next(iter(feeds_of(found, Wanted())[0].values()))
        wrong = naive = pairs = 0
        ratios = []
        for _ in range(given.repeats):
            first, *others = measured.benchmark([(path, None)] * COPIES, feeds)
            for other in others:
                wall = np.array([first.times_ms, other.times_ms])
                one = np.zeros(wall.shape[1], np.intp)
                alone = measured.timings(wall, wall, one, [0.0] * 2, [{}] * 2)[1]
                wrong, naive, pairs = wrong + other.differs, naive + alone.differs, pairs + 1
                ratios.append(other.speedup)
        print(
            f"{path.name}: {wrong} of {pairs} identical pairs differ ({naive} if runs are taken "
            f"for independent); ratios from {min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

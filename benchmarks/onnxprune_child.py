"""The child that prunes one file with onnxprune: `python -m benchmarks.onnxprune_child ...`.

It calls the passes that `onnxprune.prune` calls, in its order, each as a phase of its own. A file
that fails its verification is not written, as with `onnxprune.prune`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.child import Report


def main() -> None:
    """Read, prune, prove and write; the report is written whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument(
        "--align", type=lambda text: text if text == "auto" else int(text), default=1
    )
    parser.add_argument("--exact-only", action="store_true")
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--count", action="store_true", help="count MACs, reading the result again")
    arguments = parser.parse_args()
    report = Report()
    try:
        prune(arguments, report)
    finally:
        report.write(arguments.report)


def prune(arguments: argparse.Namespace, report: Report) -> None:
    """Prune one file, each pass a phase."""
    with report.phase("import"):
        from onnxprune.api import inspect
        from onnxprune.budget import Budget, Options
        from onnxprune.cost import cost_model
        from onnxprune.errors import NothingToPruneError
        from onnxprune.explaining import nothing_to_prune
        from onnxprune.files import load, save, sha256
        from onnxprune.passes.couple import couple
        from onnxprune.passes.normalize import normalize
        from onnxprune.passes.score import score
        from onnxprune.passes.select import select
        from onnxprune.passes.shrink import shrink
        from onnxprune.plan import make_plan
    options = Options(align=arguments.align, exact_only=arguments.exact_only)
    with report.phase("load"):
        model = load(arguments.model)
    with report.phase("normalize"):
        model = normalize(model)
    with report.phase("couple"):
        coupling = couple(model)
    report.details |= {
        "nodes": len(model.nodes),
        "groups": len(coupling.groups),
        "mixing_groups": sum(group.mixing for group in coupling.groups),
    }
    if arguments.count:
        report.details["macs"] = cost_model(coupling).cost({}).macs
    if not coupling.groups:
        raise NothingToPruneError(nothing_to_prune(coupling))
    with report.phase("score"):
        scores = score(coupling)
    with report.phase("select"):
        selection = select(coupling, scores, Budget(ratio=arguments.ratio), options)
    with report.phase("shrink"):
        proto = shrink(coupling, selection.keep)
    with report.phase("plan"):
        make_plan(coupling, selection.keep, sha256(arguments.model))
    if not arguments.no_verify:
        prove(coupling, selection.keep, proto, report)
    with report.phase("write"):
        save(proto, arguments.output, model.folder)
    if arguments.count:
        with report.phase("count"):
            report.details["macs_left"] = inspect(arguments.output).macs


def prove(coupling: Any, keep: Any, proto: Any, report: Report) -> None:
    """Verify; exit with the reason where the proof fails."""
    from onnxprune.passes.verify import verify

    with report.phase("verify"):
        verdict = verify(coupling, keep, proto)
    report.details |= {
        "verified": float(verdict.ok and not verdict.blind),
        "error": verdict.error,
        "inner_error": max((c.error for c in verdict.checks if not c.output), default=0.0),
        "allowed": max((c.allowed for c in verdict.checks), default=verdict.tolerance),
        "ordering": ", ".join(c.value for c in verdict.checks if c.ordering),
        "numbers": verdict.count,
    }
    if not verdict.ok:
        sys.exit(f"verification: {verdict.summary()}")


if __name__ == "__main__":
    main()

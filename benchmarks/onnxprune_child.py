"""The child that prunes one file with onnxprune: `python -m benchmarks.onnxprune_child ...`.

It calls the passes that `onnxprune.prune` calls, in its order, each as a phase of its own. A file
that fails its verification is not written, as with `onnxprune.prune`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.child import Report

ALIGN = ("1", "auto")


def main() -> None:
    """Read, prune, prove and write; the report is written whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--align", choices=ALIGN, default="1")
    parser.add_argument("--exact-only", action="store_true")
    parser.add_argument("--no-verify", action="store_true")
    arguments = parser.parse_args()
    report = Report()
    try:
        prune(arguments, report)
    finally:
        report.write(arguments.report)


def prune(arguments: argparse.Namespace, report: Report) -> None:
    """Prune one file, each pass a phase."""
    with report.phase("import"):
        from onnxprune.budget import Budget, Options
        from onnxprune.errors import NothingToPruneError
        from onnxprune.explaining import nothing_to_prune
        from onnxprune.files import load, save, sha256
        from onnxprune.passes.couple import couple
        from onnxprune.passes.normalize import normalize
        from onnxprune.passes.score import score
        from onnxprune.passes.select import select
        from onnxprune.passes.shrink import shrink
        from onnxprune.passes.verify import verify
        from onnxprune.plan import make_plan
    align = arguments.align if arguments.align == "auto" else int(arguments.align)
    options = Options(align=align, exact_only=arguments.exact_only)
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
    if not coupling.groups:
        raise NothingToPruneError(nothing_to_prune(coupling))
    with report.phase("score"):
        scores = score(coupling)
    with report.phase("select"):
        selection = select(coupling, scores, Budget(ratio=arguments.ratio), options)
    report.details["macs"] = selection.cost_after.macs
    with report.phase("shrink"):
        proto = shrink(coupling, selection.keep)
    with report.phase("plan"):
        make_plan(coupling, selection.keep, sha256(arguments.model))
    if not arguments.no_verify:
        with report.phase("verify"):
            verdict = verify(coupling, selection.keep, proto)
        report.details |= _told(verdict)
        if not verdict.ok:
            sys.exit(f"verification: {verdict.summary()}")
    with report.phase("write"):
        save(proto, arguments.output, model.folder)


def _told(verdict: Any) -> dict[str, float | str]:
    """What the results keep of a verification."""
    return {
        "verified": float(verdict.ok and not verdict.blind),
        "error": verdict.error,
        "inner_error": max((c.error for c in verdict.checks if not c.output), default=0.0),
        "allowed": max((c.allowed for c in verdict.checks), default=verdict.tolerance),
        "ordering": ", ".join(c.value for c in verdict.checks if c.ordering),
        "numbers": verdict.count,
    }


if __name__ == "__main__":
    main()

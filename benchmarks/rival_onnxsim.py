"""The child that prunes one file with onnxsim: `python -m benchmarks.rival_onnxsim ...`.

onnxsim has no command for pruning, only Python functions that take a path or a ModelProto and
return a new ModelProto; what they do not recognise they leave as it was, without a word. They
expect folded BatchNormalization and no shape chains, so `onnxsim.simplify` goes first. The Python
code is used: the C++ port recognises less (it leaves GELU MLPs alone, for one).
"""

import argparse
from pathlib import Path

from benchmarks.child import Report

# What each recipe calls, in this order.
RECIPES = {
    "structured": ("structured",),
    "simplify": ("simplify",),
    "simplified": ("simplify", "structured"),
    "full": ("simplify", "structured", "heads"),
    "cpp": ("simplify", "structured_cpp", "heads_cpp"),
}


def main() -> None:
    """Read, prune and write; the report is written whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--recipe", choices=RECIPES, default="full")
    arguments = parser.parse_args()
    report = Report()
    try:
        prune(arguments.model, arguments.output, arguments.ratio, arguments.recipe, report)
    finally:
        report.write(arguments.report)


def prune(source: Path, output: Path, ratio: float, recipe: str, report: Report) -> None:
    """Prune `source` to `output`, each step a phase of its own."""
    with report.phase("import"):
        import onnx
        import onnxsim

        report.details["version"] = onnxsim.__version__
    steps = {
        "simplify": lambda model: onnxsim.simplify(model)[0],
        "structured": lambda model: onnxsim.apply_structured_pruning(model, ratio),
        "heads": lambda model: onnxsim.apply_attention_head_pruning(model, ratio),
        "structured_cpp": lambda model: onnxsim.apply_structured_pruning_cpp(model, ratio),
        "heads_cpp": lambda model: onnxsim.apply_attention_head_pruning_cpp(model, ratio),
    }
    with report.phase("read"):
        model = onnx.load(source)  # given a path, the pruning does not load external data
    for step in RECIPES[recipe]:
        with report.phase(step):
            model = steps[step](model)
    with report.phase("write"):
        onnx.save(model, output)


if __name__ == "__main__":
    main()

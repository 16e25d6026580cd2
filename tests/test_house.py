"""The house rules of CONTRIBUTING.md, checked: floors, sizes, packaging."""

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 50  # docstrings left out
MAX_TOTAL_LINES = 34000  # raise it only with a reason in docs/adr (see 0002)

# Modules of onnxprune, or whole subpackages. A module imports from its own floor or from below.
FLOORS = {
    "errors": 0,
    "amounts": 0,
    "layouts": 0,
    "masks": 0,
    "axes": 0,
    "tables": 0,
    "notation": 0,
    "fitting": 0,
    "rules": 1,
    "metrics": 1,
    "model": 1,
    "files": 1,
    "full": 1,
    "shapes": 1,
    "coupling": 1,
    "affine": 1,
    "alignment": 1,
    "arena": 1,
    "balance": 1,
    "budget": 1,
    "calibration": 1,
    "checks": 1,
    "compare": 1,
    "counts": 1,
    "dynamic": 1,
    "edits": 1,
    "environment": 1,
    "explaining": 1,
    "fidelity": 1,
    "gathering": 1,
    "linear": 1,
    "moments": 1,
    "oracle": 1,
    "outside": 1,
    "pair": 1,
    "pictures": 1,
    "polynomials": 1,
    "results": 1,
    "storage": 1,
    "stubs": 1,
    "store": 1,
    "verdict": 1,
    "views": 1,
    "bodies": 1,
    "matching": 1,
    "extensions": 1,
    "guard": 1,
    "inferring": 1,
    "preparing": 1,
    "ways": 1,
    "widen": 1,
    "windows": 1,
    "work": 1,
    "latency": 1,
    "staircase": 1,
    "plan": 1,
    "cost": 1,
    "data": 1,
    "recurrent": 1,
    "refit": 1,
    "refit_recurrent": 1,
    "runtime": 1,
    "sharing": 1,
    "sides": 1,
    "sources": 1,
    "synthetic": 1,
    "stepping": 1,
    "catalogue": 1,
    "providers": 1,
    "runner": 1,
    "subjects": 1,
    "remote": 1,
    "measuring": 3,
    "api_bench": 3,
    "carrying": 3,
    "mobile": 1,
    "profile": 1,
    "entering": 1,
    "trace": 1,
    "tracing": 1,
    "target": 1,
    "torch_bridge": 1,
    "passes": 2,
    "judging": 3,
    "recipe": 3,
    "searching": 3,
    "sensing": 3,
    "api": 4,
    "api_data": 3,
    "api_rules": 3,
    "api_torch": 3,
    "choosing": 3,
    "pipeline": 3,
    "finishing": 3,
    "fronts": 3,
    "training": 3,
    "trials": 3,
    "workers": 3,
    "timing": 3,
    "tuning": 3,
    "speed": 3,
    "run": 3,
    "peaks": 3,
    "report": 4,
    "cli": 4,
    "__init__": 5,
    "__main__": 5,
}
INSIDE_RULES = "onnxprune.rules"


def sources() -> dict[str, Path]:
    """Module name -> file of everything in onnxprune/ and passes/, the symlink not followed."""
    found = {}
    for folder, package in (("onnxprune", "onnxprune"), ("passes", "onnxprune.passes")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "onnxprune" and parts[0] == "passes":
                continue
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = file
    return found


SOURCES = sources()
TREES = {name: ast.parse(file.read_text("utf-8")) for name, file in SOURCES.items()}


def unit(module: str) -> str:
    """The key of `module` in FLOORS."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of every import from onnxprune, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [t if t in modules else str(node.module) for t in targets]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] == "onnxprune":
                yield node.lineno, target


def layering_errors(module: str, tree: ast.AST, modules: set[str]) -> list[str]:
    errors = []
    for line, target in imports(tree, modules):
        passes = [unit(name) == "passes" for name in (module, target)]
        if FLOORS[unit(target)] > FLOORS[unit(module)]:
            errors.append(f"{module}:{line} imports {target} from a higher floor")
        elif all(passes) and not same_pass(module, target):
            errors.append(f"{module}:{line} imports the pass {target}")
    return errors


def same_pass(module: str, target: str) -> bool:
    """Whether both belong to one pass; onnxprune.passes itself may show its passes to the world."""
    return module == "onnxprune.passes" or module.split(".")[:3] == target.split(".")[:3]


def operator_comparisons(tree: ast.AST) -> list[int]:
    """Lines that compare an operator name with a literal: those belong in a table of rules."""
    lines = []
    sides: list[ast.AST]
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=comparators):
                sides = [left, *comparators]
            case ast.Match(subject=subject, cases=cases):
                sides = [subject, *(case.pattern for case in cases)]
            case ast.Call(func=ast.Attribute(value=value, attr="startswith" | "endswith")):
                sides = [value, *node.args]
            case _:
                continue
        if any(is_operator(side) for side in sides) and any(has_string(side) for side in sides):
            lines.append(node.lineno)
    return lines


def is_operator(tree: ast.AST) -> bool:
    return isinstance(tree, ast.Attribute) and tree.attr in ("op", "op_type")


def has_string(tree: ast.AST) -> bool:
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return any(isinstance(value, str) for value in constants)


def long_functions(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - text.count("\n")
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{node.name}: {lines} lines")
    return found


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_keeps_to_the_house(module: str) -> None:
    tree = TREES[module]
    assert unit(module) in FLOORS, f"give {module} a floor in FLOORS"
    assert layering_errors(module, tree, set(SOURCES)) == []
    assert long_functions(tree) == []
    assert len(SOURCES[module].read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    if not module.startswith(INSIDE_RULES):
        assert operator_comparisons(tree) == [], "compare operators in a table of onnxprune.rules"


def test_the_whole_stays_small() -> None:
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in SOURCES.values())
    assert lines <= MAX_TOTAL_LINES


def test_imports_run_in_no_circle() -> None:
    below = {
        name: {target for _, target in imports(tree, set(SOURCES)) if target in SOURCES} - {name}
        for name, tree in TREES.items()
    }
    while ready := [name for name, targets in below.items() if not targets]:
        for name in ready:
            del below[name]
        for targets in below.values():
            targets.difference_update(ready)
    assert not below, "these modules import one another"


def test_every_folder_is_packaged() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {name for name, file in SOURCES.items() if file.name == "__init__.py"}
    assert set(config["tool"]["setuptools"]["packages"]) == packages
    assert (ROOT / "onnxprune" / "py.typed").is_file()


def test_passes_is_a_part_of_onnxprune() -> None:
    link = ROOT / "onnxprune" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")
    passes = importlib.import_module("onnxprune.passes")
    assert passes.__name__ == "onnxprune.passes"
    assert Path(str(passes.__file__)).resolve() == ROOT / "passes" / "__init__.py"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("onnxprune.axes", "from onnxprune.plan import Plan"),
        ("onnxprune.axes", "import onnxprune"),
        ("onnxprune.model", "from onnxprune import api"),
        ("onnxprune.model", "def f():\n    from onnxprune.passes import score"),
        ("onnxprune.pipeline", "import onnxprune.cli"),
        ("onnxprune.passes.select", "from onnxprune.passes.score import norm"),
        ("onnxprune.passes.score.norm", "from onnxprune.passes import select"),
    ],
)
def test_a_wrong_import_is_found(module: str, code: str) -> None:
    modules = {"onnxprune.api", "onnxprune.passes.score", "onnxprune.passes.select"}
    assert len(layering_errors(module, ast.parse(code), modules)) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("onnxprune.api", "from onnxprune.passes import select"),
        ("onnxprune.notation", "from onnxprune.errors import OnnxPruneError"),
        ("onnxprune.passes", "from onnxprune.passes.select import select"),
        ("onnxprune.passes.score.norm", "from onnxprune.passes.score import common"),
        ("onnxprune.plan", "import numpy"),
    ],
)
def test_a_right_import_is_not(module: str, code: str) -> None:
    modules = {"onnxprune.passes.select", "onnxprune.passes.score", "onnxprune.passes.score.common"}
    assert layering_errors(module, ast.parse(code), modules) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("node.op_type == 'Conv'", True),
        ("'Conv' != node.op", True),
        ("node.op in ('Conv', 'Gemm')", True),
        ("node.op.startswith('Quant')", True),
        ("match node.op:\n    case 'Conv':\n        pass", True),
        ("node.op in TABLE", False),
        ("node.name == 'Conv'", False),
    ],
)
def test_a_comparison_of_operators_is_found(code: str, found: bool) -> None:
    assert bool(operator_comparisons(ast.parse(code))) is found

"""A structured pruning compiler for ONNX: any .onnx in, a proven smaller .onnx out.

    small, report = onnxprune.prune("model.onnx", macs=0.5)

The functions are those of ``onnxprune.api``; they are imported when they are first used, so that
``import onnxprune`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune import errors
    from onnxprune.api import (
        apply,
        bench,
        bridge,
        distill,
        evaluate,
        explain,
        finetune,
        inspect,
        load,
        probe,
        prune,
        register_rule,
        save,
        sensitivity,
        verify,
    )
    from onnxprune.cost import Cost
    from onnxprune.extensions import ort_extensions
    from onnxprune.measuring import Bench
    from onnxprune.model import Model
    from onnxprune.pictures import Pictures
    from onnxprune.plan import Plan
    from onnxprune.recipe import Recipe, load_recipe
    from onnxprune.results import Inspection, Report
    from onnxprune.verdict import Verification

    __version__: str

_HOMES = {
    "Cost": "onnxprune.cost",
    "Bench": "onnxprune.measuring",
    "Inspection": "onnxprune.results",
    "Model": "onnxprune.model",
    "Pictures": "onnxprune.pictures",
    "Plan": "onnxprune.plan",
    "Recipe": "onnxprune.recipe",
    "Report": "onnxprune.results",
    "Verification": "onnxprune.verdict",
    "load_recipe": "onnxprune.recipe",
    "ort_extensions": "onnxprune.extensions",
    **dict.fromkeys(
        (
            "apply",
            "bench",
            "bridge",
            "distill",
            "evaluate",
            "explain",
            "finetune",
            "inspect",
            "load",
            "probe",
            "prune",
            "register_rule",
            "save",
            "sensitivity",
            "verify",
        ),
        "onnxprune.api",
    ),
}

__all__ = [
    "Bench",
    "Cost",
    "Inspection",
    "Model",
    "Pictures",
    "Plan",
    "Recipe",
    "Report",
    "Verification",
    "__version__",
    "apply",
    "bench",
    "bridge",
    "distill",
    "errors",
    "evaluate",
    "explain",
    "finetune",
    "inspect",
    "load",
    "load_recipe",
    "ort_extensions",
    "probe",
    "prune",
    "register_rule",
    "save",
    "sensitivity",
    "verify",
]


if not TYPE_CHECKING:  # so that type checkers know the names above, and no others

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return import_module("onnxprune.errors")
        if name == "__version__":
            from importlib.metadata import version

            return version("onnxprune")
        if name in _HOMES:
            value = globals()[name] = getattr(import_module(_HOMES[name]), name)
            return value
        raise AttributeError(f"module 'onnxprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    dunders = {name for name in globals() if name.startswith("__")}
    return sorted({*dunders, *__all__})  # not the submodules that imports leave here

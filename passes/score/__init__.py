"""Score: how much each index of each group matters, told by the weights alone.

Every criterion is a row of ``CRITERIA``; docs/criteria.md says what they are and how they compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onnxprune.axes import Values
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.score import criteria
from onnxprune.passes.score.criteria import Criterion, Settings
from onnxprune.passes.score.gradients import fisher, hessian, taylor
from onnxprune.passes.score.magnitude import SCALES, SIDES, Progress
from onnxprune.passes.score.obs import activation, flap, obs, wanda
from onnxprune.passes.score.redundancy import Twins, merge_weights, merges
from onnxprune.runtime import Feeds

__all__ = [
    "BY_ROW",
    "CRITERIA",
    "DATA_DRIVEN",
    "DEFAULT",
    "DEFAULT_SCALE",
    "DEFAULT_SIDES",
    "DEFAULT_WITH_DATA",
    "MERGING",
    "SCALES",
    "SIDES",
    "Progress",
    "Twins",
    "check_known",
    "merge_weights",
    "merges",
    "remarks",
    "score",
]

# Chosen by measurement: see docs/criteria.md.
DEFAULT: Final = "l2"
DEFAULT_SIDES: Final = "contracted"
DEFAULT_SCALE: Final = "mean"
MERGING: Final = frozenset({"redundancy"})  # what these remove is merged into what stays
DATA_DRIVEN: Final = frozenset(
    {"activation", "fisher", "flap", "hessian", "obs", "taylor", "wanda"}
)  # these want calibration inputs
DEFAULT_WITH_DATA: Final = "obs"
CRITERIA: Final[dict[str, Criterion]] = {
    "activation": activation,
    "bn-scale": criteria.bn_scale,
    "fisher": fisher,
    "flap": flap,
    "fpgm": criteria.fpgm,
    "hessian": hessian,
    "l1": criteria.l1,
    "l2": criteria.l2,
    "lamp": criteria.lamp,
    "linf": criteria.linf,
    "obs": obs,
    "random": criteria.random,
    "redundancy": criteria.redundancy,
    "taylor": taylor,
    "wanda": wanda,
}

# These score each row of a group that may be balanced; by all others rows keep the same positions.
BY_ROW: Final = frozenset(
    {"activation", "bn-scale", "flap", "l1", "l2", "lamp", "linf", "obs", "wanda"}
)
REMARKS: Final = {"bn-scale": criteria.without_scale}


def remarks(coupling: Coupling, criterion: str) -> list[str]:
    """What the user should know of a criterion on this model, in sentences."""
    return REMARKS[criterion](coupling) if criterion in REMARKS else []


def check_known(criterion: str, sides: str = DEFAULT_SIDES, scale: str = DEFAULT_SCALE) -> None:
    """Refuse names that are not known.

    Raises:
        OnnxPruneError: there is no criterion, side or scale of this name.
    """
    for what, name, known in (
        ("criterion", criterion, CRITERIA),
        ("sides", sides, SIDES),
        ("scale", scale, SCALES),
    ):
        if name not in known:
            raise OnnxPruneError(f"{what} '{name}' is not known: choose one of {', '.join(known)}")


def score(
    coupling: Coupling,
    criterion: str = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    sides: str = DEFAULT_SIDES,
    scale: str = DEFAULT_SCALE,
    feeds: Sequence[Feeds] | None = None,
    balanced: bool = True,
) -> dict[int, Values]:
    """Score every index of every group; higher is kept.

    Needs the coupling of a normalized model. Changes nothing. Promises: the same scores for the
    same seed, and that no score depends on the order of the channels.

    Args:
        coupling: the structure of the model.
        criterion: a name in ``CRITERIA``.
        seed: for what is random.
        progress: is told the name of each parameter before it is read.
        sides: a name in ``SIDES``: which members of a group count.
        scale: a name in ``SCALES``: what of each group becomes 1; with ``none`` weights stay as
            large as they are.
        feeds: batches of calibration inputs, for criteria that look at data.
        balanced: whether groups that may keep other indices in each of their rows get scores for
            each row, from the criteria in ``BY_ROW``.

    Returns:
        By factor the scores (size,), or (rows, size).

    Raises:
        OnnxPruneError: there is no criterion, side or scale of this name, or it wants calibration
            inputs and there are none.
    """
    check_known(criterion, sides, scale)
    if criterion in DATA_DRIVEN and not feeds:
        raise OnnxPruneError(
            f"criterion '{criterion}' looks at what layers read: give calibration inputs "
            "(--calibration)"
        )
    return CRITERIA[criterion](coupling, Settings(seed, sides, scale, progress, feeds, balanced))

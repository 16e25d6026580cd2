"""What each group can spare: a table of trials, and the ratios that it gives for a budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onnxprune.budget import Budget, Options, matches
from onnxprune.cost import CostModel, cost_model
from onnxprune.coupling import Coupling
from onnxprune.errors import OnnxPruneError
from onnxprune.results import Jsonable


@dataclass(frozen=True)
class Trial:
    """One group alone at one ratio.

    Attributes:
        group: its name.
        ratio: the share that was asked for.
        before, after: its channels.
        fall: what it costs: the fall of the metric, or of the fidelity.
        divergence: how far outputs are: KL of class scores in nats, else the missed variance.
        macs, params: shares of the whole model's that go.
        ms: milliseconds of a run that go, by a fit to measured times (see ``onnxprune.latency``);
            None where none was asked for.
    """

    group: str
    ratio: float
    before: int
    after: int
    fall: float
    divergence: float
    macs: float
    params: float
    ms: float | None = None

    @property
    def harm(self) -> tuple[float, float]:
        """What trials are ordered by."""
        return max(self.fall, 0.0), self.divergence


@dataclass(frozen=True)
class Sensitivity(Jsonable):
    """Trials of all groups.

    Attributes:
        model: the model's name.
        settings: what they were made with; a file with other settings is not continued.
        trials: in the order of the groups and ratios.
    """

    model: str
    settings: dict[str, Any]
    trials: tuple[Trial, ...] = field(repr=False)

    def to_csv(self) -> str:
        """The trials as a table."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Trial)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(trial) for trial in self.trials)
        return text.getvalue()


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a file that ``onnxprune sensitivity`` wrote.

    Raises:
        OnnxPruneError: it is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        trials = tuple(Trial(**row) for row in data["trials"])
        return Sensitivity(data["model"], data["settings"], trials)
    except OSError as error:
        raise OnnxPruneError(f"'{path}' can't be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise OnnxPruneError(
            f"'{path}' is no table of sensitivities: make one with 'onnxprune sensitivity'"
        ) from error


def ratios_within(found: Sensitivity, worst: tuple[float, float]) -> dict[str, float]:
    """By group the largest ratio up to which no trial does more harm than this."""
    ratios: dict[str, float] = {}
    stopped: set[str] = set()
    for trial in sorted(found.trials, key=lambda trial: trial.ratio):
        if trial.harm > worst:
            stopped.add(trial.group)
        elif trial.group not in stopped:
            ratios[trial.group] = trial.ratio
    return ratios


def allotted(coupling: Coupling, found: Sensitivity, budget: Budget, options: Options) -> Options:
    """Options that share a budget out by sensitivity.

    Groups lose the largest ratios at which each alone does no more harm than a threshold; the
    lowest threshold that meets the budget counts, found by bisection over the trials. ``select``
    then scales these ratios to the budget.

    Raises:
        OnnxPruneError: the table is of another model, or there is no budget.
    """
    if options.per_group is not None or options.scope == "per-group":
        raise OnnxPruneError(
            "ratios by pattern and ratios from sensitivities are both given: give one of them"
        )
    names = {group.name: group for group in coupling.groups}
    strangers = [trial.group for trial in found.trials if trial.group not in names]
    if strangers or not found.trials:
        what = f"group '{strangers[0]}', which" if strangers else "no trials:"
        raise OnnxPruneError(
            f"the table of sensitivities has {what} '{coupling.model.name}' has not got: it was "
            "made for another model"
        )
    if not budget.given():
        raise OnnxPruneError(
            "ratios from sensitivities want a budget to meet, and a latency is none of these: give "
            "what may remain of macs, params, bytes or peak memory, or max_drop"
        )
    costs = cost_model(coupling)
    limits = budget.limits(costs.cost({}))
    levels = sorted({trial.harm for trial in found.trials})
    low, high = 0, len(levels) - 1  # the lowest level that meets the budget, or the last
    while low < high:
        middle = (low + high) // 2
        if _meets(coupling, costs, limits, ratios_within(found, levels[middle]), options):
            high = middle
        else:
            low = middle + 1
    ratios = ratios_within(found, levels[low])
    return replace(options, scope="per-group", per_group=ratios)


def _meets(
    coupling: Coupling,
    costs: CostModel,
    limits: Mapping[str, float],
    ratios: Mapping[str, float],
    options: Options,
) -> bool:
    """Whether these ratios cost no more than the limits."""
    counts = {}
    for group in coupling.groups:
        free = not (options.exact_only and group.mixing)
        free &= not options.include or matches(coupling, group, options.include) is not None
        free &= matches(coupling, group, options.exclude) is None
        ratio = min(ratios.get(group.name, 0.0), options.max_ratio)
        if free and ratio:
            fewest = max(options.min_channels, group.least)
            counts[group.factor] = max(fewest, round(group.size * (1 - ratio)))
    cost = costs.cost(counts)
    return all(getattr(cost, measure) <= limit for measure, limit in limits.items())

"""The plan: which indices are kept, in names and indices of the original file.

A plan is JSON that can be reviewed, diffed, edited and replayed, also on another file with the
same names (an fp16 or QDQ twin):

    {"format": 1, "model": {"sha256": ..., "name": ...},
     "groups": {GROUP: {"size": 64, "keep": [...]}},
     "initializers": {NAME: {"0": [kept indices], ...}}}

``initializers`` lists the axes that lose something, and is what a replay goes by; ``groups`` says
the same once for each group. Where each row of another factor keeps indices of its own
(``onnxprune.balance``), a group lists a list for each row, and so does an axis that is such a
factor by itself: as long as the factor of the rows, as many indices in each. A Constant node goes
by its output's name, one use of an un-shared initializer is ``NAME@OUTPUT:INDEX``. Where
near-copies were merged, ``merge_seed`` is the seed with which a replay finds them again.
``recovered`` lists the parameters whose kept values were fitted afterwards: a plan does not carry
these values, and a proof takes them from the pruned file. ``open_io`` names the graph's inputs and
outputs that may have lost channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune.axes import Factors, Layout, Mask
from onnxprune.coupling import Coupling
from onnxprune.errors import BadPlanError
from onnxprune.masks import kept_count
from onnxprune.tables import settled, solve

Keep = Mapping[int, Mask]
Indices = list[Annotated[int, Field(ge=0)]]
Listed = Indices | list[Indices]


def counts_of(keep: Keep) -> dict[int, int]:
    """How many channels each factor keeps, in each of its rows."""
    return {factor: kept_count(mask) for factor, mask in keep.items()}


class ModelId(BaseModel):
    """Which file the plan was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str | None = None
    name: str = ""


class GroupPlan(BaseModel):
    """The kept indices of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    keep: Listed


class Plan(BaseModel):
    """What is kept. See the module's docstring for the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    model: ModelId = ModelId()
    groups: dict[str, GroupPlan] = {}
    initializers: dict[str, dict[int, Listed]] = {}
    merge_seed: int | None = None
    recovered: tuple[str, ...] = ()
    open_io: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as JSON with sorted keys, one initializer a line."""
        data = json.loads(self.model_dump_json())
        parts = [f'  "format": {data["format"]}']
        for key in ("groups", "initializers"):
            rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(data[key].items())]
            body = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
            parts.append(f'  "{key}": {body}')
        if self.merge_seed is not None:
            parts.append(f'  "merge_seed": {self.merge_seed}')
        parts.append(f'  "model": {json.dumps(data["model"], sort_keys=True)}')
        if self.recovered:
            parts.append(f'  "recovered": {json.dumps(sorted(self.recovered))}')
        if self.open_io:
            parts.append(f'  "open_io": {json.dumps(sorted(self.open_io))}')
        return "{\n" + ",\n".join(parts) + "\n}\n"


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        BadPlanError: it can't be read, or is no plan.
    """
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPlanError(f"the plan '{path}' can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadPlanError(f"the plan '{path}' can't be read: it is no UTF-8 text") from error
    except ValidationError as error:
        first = error.errors()[0]
        named = (str(part) for part in first["loc"])
        where = ".".join(part for part in named if not part.startswith("list[")) or "the file"
        raise BadPlanError(f"'{path}' is no plan: {where}: {first['msg']}") from error


def make_plan(
    coupling: Coupling, keep: Keep, sha256: str | None = None, merge_seed: int | None = None
) -> Plan:
    """The plan that keeps these indices.

    Args:
        coupling: the structure of the model.
        keep: kept indices (size,) by factor; a factor that is absent keeps all.
        sha256: the digest of the model's file.
        merge_seed: the seed of merging, where removed near-copies are merged into kept channels.
    """
    keep = settled(coupling.factors, keep)
    pruned = {factor for factor, mask in keep.items() if not mask.all()}
    groups = {
        g.name: GroupPlan(size=g.size, keep=_listed(keep[g.factor]))
        for g in coupling.groups
        if g.factor in pruned
    }
    axes = {(m.param, m.axis) for g in coupling.groups if g.factor in pruned for m in g.members}
    initializers: dict[str, dict[int, Listed]] = {}
    for param, axis in sorted(axes):
        mask = coupling.factors.mask(coupling.layouts[param][axis], keep)
        if not mask.all():
            initializers.setdefault(param, {})[axis] = _listed(mask)
    model = ModelId(sha256=sha256, name=coupling.model.name)
    return Plan(
        model=model,
        groups=groups,
        initializers=initializers,
        merge_seed=merge_seed,
        open_io=tuple(sorted(coupling.model.open_io)),
    )


def _listed(mask: Mask) -> Listed:
    """The kept indices, or those of each row."""
    if mask.ndim > 1:
        return [np.flatnonzero(row).tolist() for row in mask]
    found: Indices = np.flatnonzero(mask).tolist()
    return found


def keep_of(plan: Plan, coupling: Coupling) -> dict[int, Mask]:
    """The kept indices by factor that a plan asks for on this model.

    A parameter that a twin lacks (a folded BatchNormalization) is left out, if others lose the same
    indices.

    Raises:
        BadPlanError: the plan names what the model has not got, keeps indices that are not there,
            contradicts itself, or removes what is frozen.
    """
    keep: dict[int, Mask] = {}
    named = {param: _twin(param, coupling) for param in plan.initializers}
    found = [(named[param], axes) for param, axes in plan.initializers.items() if named[param]]
    known = {repr(indices) for _, axes in found for indices in axes.values()}
    for param, axes in plan.initializers.items():
        if named[param] is None and not known.issuperset(map(repr, axes.values())):
            raise BadPlanError(
                f"the plan prunes '{param}', which '{coupling.model.name}' has not got or does not "
                "use: it was made for another model"
            )
    for name, axes in found:
        for axis, indices in axes.items():
            _meet(coupling, keep, str(name), axis, indices)
    for name, own in plan.groups.items():
        group = coupling.group(name)
        mask = keep.get(group.factor) if group is not None else None
        if group is not None and (mask is None or _listed(mask) != own.keep):
            raise BadPlanError(
                f"the plan's group '{name}' and its initializers keep different indices: edit "
                "both, or leave the groups out"
            )
    return {factor: mask for factor, mask in keep.items() if not mask.all()}


def _twin(param: str, coupling: Coupling) -> str | None:
    """What a parameter of the plan is called here: quantisers add to the name, or drop it."""
    names = (param, f"{param}_quantized")
    return next((x for x in names if x in coupling.layouts and x in coupling.model.params), None)


def _meet(
    coupling: Coupling, keep: dict[int, Mask], param: str, axis: int, indices: Listed
) -> None:
    layouts, factors = coupling.layouts[param], coupling.factors
    where = f"'{param}', axis {axis}"
    if axis >= len(layouts):
        raise BadPlanError(f"{where}: the tensor has {len(layouts)} axes")
    mask = _mask(indices, coupling.model.params[param].shape[axis], where)
    if mask.all():
        return
    found = solve if mask.ndim == 1 else _by_row
    solved = found(factors, layouts[axis], mask)
    if solved is None:
        names = factors.render(layouts[axis], coupling.names())
        raise BadPlanError(f"{where}: the kept indices do not follow its layout {names}")
    for factor, own in solved.items():
        reason = factors.reason(factor)
        if reason is not None and not own.all():
            raise BadPlanError(f"{where}: can't be pruned, because {coupling.says(reason)}")
        if factor in keep and not np.array_equal(keep[factor], own):
            name = coupling.names().get(factor, "a group")
            raise BadPlanError(f"{where}: contradicts what the plan keeps elsewhere of '{name}'")
        keep[factor] = own


def _mask(indices: Listed, size: int, where: str) -> Mask:
    """The mask (size,), or (rows, size) where there is a list for each row."""
    if indices and isinstance(indices[0], list):
        rows = [_mask(row, size, where) for row in indices if isinstance(row, list)]
        if len({int(row.sum()) for row in rows}) > 1:
            raise BadPlanError(f"{where}: the plan keeps more indices in one row than in another")
        return np.stack(rows)
    own = [index for index in indices if isinstance(index, int)]
    if not own or max(own) >= size or len(set(own)) != len(own):
        found = f"keeps index {max(own)}" if own else "keeps nothing"
        raise BadPlanError(f"{where}: has {size} channels, the plan {found}")
    mask = np.zeros(size, bool)
    mask[own] = True
    return mask


def _by_row(factors: Factors, layout: Layout, table: Mask) -> dict[int, Mask] | None:
    """What a table says of the factor that an axis is; None if it may have none like that."""
    factor = factors.normal(layout)
    row = factors.rows.get(factor) if isinstance(factor, int) else None
    if row is None or factors.size(row) != len(table):
        return None
    assert isinstance(factor, int)
    return {factor: table}

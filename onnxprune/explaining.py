"""Answers about a coupling: what a model is made of, and why something can't be pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from onnxprune.axes import Layout, Opaque, Sum
from onnxprune.cost import Cost, CostModel, cost_model, single_samples
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import OnnxPruneError
from onnxprune.latency import Latency, with_latency
from onnxprune.model import DEFAULTED_FROM, subgraphs
from onnxprune.plan import Keep, counts_of
from onnxprune.results import FrozenRow, GroupRow, Inspection
from onnxprune.rules import Unprunable, row_of
from onnxprune.rules.tables import FILLS

SHOWN = 40  # members that an explanation lists


def costs(
    coupling: Coupling, keep: Keep, latency: Latency | None = None
) -> tuple[Cost, Cost, tuple[GroupRow, ...]]:
    """Costs before and after, with a model of the latency if there is one; a row for each group."""
    model = cost_model(coupling)
    model = model if latency is None else with_latency(model, latency)
    counts = counts_of(keep)
    return model.cost({}), model.cost(counts), _rows(coupling, model, counts)


def _rows(coupling: Coupling, model: CostModel, counts: Mapping[int, int]) -> tuple[GroupRow, ...]:
    before = np.array([group.size for group in coupling.groups], np.float64)
    after = np.array(
        [counts.get(group.factor, group.size) for group in coupling.groups], np.float64
    )
    shares = [
        kept * model.slopes(kept, measure)
        for measure in ("macs", "params")
        for kept in (before, after)
    ]
    return tuple(
        GroupRow(
            name=group.name,
            before=group.size,
            after=counts.get(group.factor, group.size),
            mixing=group.mixing,
            members=len(group.members),
            macs=round(row[0]),
            macs_after=round(row[1]),
            params=round(row[2]),
            params_after=round(row[3]),
            rows=group.rows,
        )
        for group, row in zip(coupling.groups, zip(*shares, strict=True), strict=True)
    )


def inspection(coupling: Coupling) -> Inspection:
    """The figures and groups of a model, and what is frozen."""
    model = coupling.model
    before, _, rows = costs(coupling, {})
    return Inspection(
        name=model.name,
        opset=model.opset,
        nodes=len(model.proto.graph.node),
        macs=before.macs,
        params=before.params,
        size_bytes=before.size_bytes,
        peak_bytes=before.peak_bytes,
        groups=rows,
        frozen=frozen_rows(coupling),
        uncovered=_uncovered(coupling),
        inputs=input_shapes(coupling),
    )


def input_shapes(coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """The shape of each input that costs are given for: one sample, where their number is free."""
    factors, singles = coupling.factors, single_samples(coupling)
    return {
        name: tuple(
            0 if isinstance(layout, Opaque) else factors.count(layout, singles)
            for layout in coupling.layouts.get(name, ())
        )
        for name in coupling.model.inputs
    }


def changed_io(coupling: Coupling, keep: Keep) -> list[str]:
    """The new shapes of inputs and outputs that lost channels, in sentences."""
    found, factors, model = [], coupling.factors, coupling.model
    counts = counts_of(keep)
    for kind, names in (("input", model.inputs), ("output", model.outputs)):
        for name in (x for x in names if x in model.open_io):
            layouts, shape = coupling.layouts.get(name, ()), model.shape(name) or ()
            axes = list(zip(shape, layouts, strict=True)) if len(shape) == len(layouts) else []
            old = ["?" if size is None else str(size) for size, _ in axes]
            new = ["?" if n is None else str(factors.count(x, counts)) for n, x in axes]
            if new != old:
                found.append(f"{kind} '{name}' was {'x'.join(old)} and is {'x'.join(new)} now")
    return found + _changed_defaults(coupling, keep)


def _changed_defaults(coupling: Coupling, keep: Keep) -> list[str]:
    """That weights which callers may give shrink, in a sentence; nothing where there are none."""
    model, factors = coupling.model, coupling.factors
    if model.proto.ir_version < DEFAULTED_FROM:
        return []
    pruned = frozenset(factor for factor, mask in keep.items() if not mask.all())
    origins = {
        param.origin
        for name, param in model.params.items()
        for layout in coupling.layouts.get(name, ())
        if not pruned.isdisjoint(factors.leaves(layout))
    }
    changed = [value.name for value in model.proto.graph.input if value.name in origins]
    if not changed:
        return []
    return [
        f"{len(changed)} weights are listed as inputs ('{changed[0]}', ...): they are smaller now, "
        "and a caller who gives values for one has to give smaller ones"
    ]


def frozen_rows(coupling: Coupling) -> tuple[FrozenRow, ...]:
    """The parameters' axes that can't be pruned at all, with reasons."""
    rows = []
    for name, param in coupling.model.params.items():
        for axis, layout in enumerate(coupling.layouts.get(name, ())):
            reason = coupling.factors.reason(layout)
            if reason is not None and param.shape[axis] > 1:
                why = coupling.says(reason)
                if not coupling.factors.leaves(layout):
                    normal = coupling.factors.normal(layout)
                    why = f"it is cut into single indices{_first_with(coupling, normal)}"
                rows.append(FrozenRow(name, axis, param.shape[axis], why))
    return tuple(rows)


def _uncovered(coupling: Coupling) -> dict[str, str]:
    """Operators of this model that have no rule, with the reason."""
    found = {}
    for index in coupling.frozen:
        op = coupling.model.nodes[index].op
        try:
            row_of(op, {})
        except Unprunable as verdict:
            found[op] = str(verdict)
    return found


def nothing_to_prune(coupling: Coupling) -> str:
    """Why a model has no group, in one sentence."""
    name = coupling.model.name
    if not coupling.model.params:
        return f"'{name}' has no weights, so there is nothing to prune"
    bodies = [i for i in coupling.frozen if coupling.model.nodes[i].proto.attribute]
    bodies = [i for i in bodies if any(subgraphs(coupling.model.nodes[i].proto))]
    if bodies:
        node = coupling.model.nodes[bodies[0]]
        return (
            f"'{name}' has no group that can be pruned: {node.label}: {coupling.frozen[bodies[0]]}"
        )
    rows = sorted(
        frozen_rows(coupling), key=lambda row: (not row.reason.startswith("node "), -row.size)
    )
    filled = [node for node in coupling.model.nodes if node.op in FILLS]
    if not rows and filled:
        return (
            f"'{name}' stores no weights: {len(filled)} nodes, such as {filled[0].label}, fill "
            "them with one value each when it runs, so there is nothing to prune"
        )
    if not rows:
        return f"'{name}' has no weight with an axis longer than 1, so there is nothing to prune"
    more = f" (and {len(rows) - 1} more: see onnxprune inspect)" if len(rows) > 1 else ""
    first = f"'{rows[0].param}', axis {rows[0].axis}: {rows[0].reason}"
    return f"'{name}' has no group that can be pruned: {first}{more}"


def explanation(coupling: Coupling, what: str) -> str:
    """The layout of VALUE or VALUE:AXIS, or the members of a GROUP.

    Raises:
        OnnxPruneError: there is nothing of this name.
    """
    group = coupling.group(what)
    if group is not None:
        return _about_group(coupling, group)
    name, _, axis = what.rpartition(":")
    if what in coupling.layouts:
        return _about_value(coupling, what, None)
    if name in coupling.layouts and axis.lstrip("-").isdecimal():
        rank = len(coupling.layouts[name])
        if not -rank <= int(axis) < rank:
            raise OnnxPruneError(f"'{name}' has {rank} axes, so there is no axis {axis}")
        return _about_value(coupling, name, int(axis) % rank)
    near = _near(coupling, what)
    raise OnnxPruneError(
        f"'{coupling.model.name}' has no group or value '{what}'{near}: "
        "see onnxprune inspect for the names"
    )


def _near(coupling: Coupling, what: str) -> str:
    names = [g.name for g in coupling.groups] + list(coupling.layouts)
    found = next((n for n in names if what and what.lower() in n.lower()), None)
    return f"; did you mean '{found}'" if found else ""


def _about_group(coupling: Coupling, group: Group) -> str:
    kind = "mixing: removal changes norm statistics" if group.mixing else "exact"
    lines = [f"group {group.name}: {group.size} channels, {kind}, {len(group.members)} members"]
    names = coupling.names()
    if group.rows > 1:
        own = names.get(coupling.factors.rows[group.factor])
        each = f"each index of '{own}'" if own else f"each of {group.rows} rows"
        lines.append(f"  balanced: {each} may keep channels of its own, as many as the others")
    elif group.same is not None:
        lines.append(f"  the same channels in every row: {coupling.says(group.same)}")
    for member in group.members[:SHOWN]:
        side = "contracted" if member.contracted else "produced"
        layout = coupling.factors.render(member.layout, names)
        lines.append(f"  {member.param}, axis {member.axis} ({side}): {layout}")
    if len(group.members) > SHOWN:
        lines.append(f"  and {len(group.members) - SHOWN} more")
    return "\n".join(lines)


def _about_value(coupling: Coupling, name: str, only: int | None) -> str:
    kind = "parameter" if name in coupling.model.params else "value"
    lines = [f"{kind} {name}"]
    for axis, layout in enumerate(coupling.layouts[name]):
        if only is None or axis == only:
            lines.extend(_about_axis(coupling, axis, layout))
    return "\n".join(lines)


def _about_axis(coupling: Coupling, axis: int, layout: Layout) -> list[str]:
    factors, names = coupling.factors, coupling.names()
    normal = factors.normal(layout)
    lines = [f"  axis {axis}: {factors.render(normal, names)}"]
    if not isinstance(normal, Sum) or not normal.parts:
        return lines + [f"    {line}" for line in _about_part(coupling, normal)]
    parts = Counter(normal.parts)
    for part, times in list(parts.items())[:SHOWN]:
        often = f", {times} times" if times > 1 else ""
        lines.append(f"    {factors.render(part, names)}, {_channels(factors.size(part))}{often}")
        if factors.size(part) == 1:
            lines.append(f"      whole: single indices{_first_with(coupling, normal)}")
        else:
            lines.extend(f"      {line}" for line in _about_part(coupling, part))
    if len(parts) > SHOWN:
        lines.append(f"    and {len(parts) - SHOWN} more parts")
    return lines


def _about_part(coupling: Coupling, layout: Layout) -> list[str]:
    """A line for each factor of a part of an axis: its group, or what keeps it whole."""
    factors = coupling.factors
    own = {group.factor: group for group in coupling.groups}
    lines = []
    for leaf in factors.leaves(layout):
        reason = factors.reason(leaf)
        if leaf in own:
            lines.append(f"group {own[leaf].name}, {len(own[leaf].members)} members")
        elif reason is not None:
            size = f"{_channels(factors.size(leaf))} of it " if leaf != layout else ""
            lines.append(f"{size}whole: {coupling.says(reason)}")
        else:
            lines.append("free, but no parameter has it: there is nothing to prune")
    if not lines and not isinstance(layout, Opaque) and factors.size(layout) > 1:
        return [f"whole: it is cut into single indices{_first_with(coupling, layout)}"]
    reason = factors.reason(layout)
    if not lines and reason is not None:
        lines = [f"whole: {coupling.says(reason)}"]
    return list(dict.fromkeys(lines))


def _first_with(coupling: Coupling, part: Layout) -> str:
    """The first node that makes an axis with this part, in words: there it is cut at the latest."""
    for node in coupling.model.nodes:
        for name in node.outputs:
            for layout in coupling.layouts.get(name, ()):
                normal = coupling.factors.normal(layout)
                if normal == part or (isinstance(normal, Sum) and part in normal.parts):
                    return f", first met at {node.label}"
    return ""


def _channels(size: int) -> str:
    return f"{size} indices" if size != 1 else "1 index"

"""Computed rules of reductions, normalisations, gathers and scatters."""

from __future__ import annotations

from onnxprune.rules.site import Computed, Site, Unprunable, letters, line


def reduce(mark: str, axes_operand: int = 1) -> Computed:
    """Reduced axes vanish or become 1; ``mark`` is ``!`` where the reduction mixes."""

    def rule(site: Site) -> str:
        rank = site.rank()
        axes = site.fixed("axes", axes_operand)
        if not axes and site.attribute("noop_with_empty_axes", 0):
            return "..., ~ -> ..."
        gone = {a % rank for a in axes} if axes else set(range(rank))
        names = letters(rank)
        source = [f"{name}{mark}" if k in gone else name for k, name in enumerate(names)]
        keep = site.attribute("keepdims", 1)
        result = ["1" if k in gone else n for k, n in enumerate(names) if keep or k not in gone]
        return line([" ".join(source) or "~", "~"], [" ".join(result) or "~"])

    return rule


def along_axis(site: Site) -> str:
    """The last axis, or ``axis``, mixes; the others are carried."""
    names = letters(site.rank())
    names[site.axis(-1)] += "!"
    return line([" ".join(names)], [" ".join(names)])


def softmax(site: Site) -> str:
    """Before opset 13 the softmax family took all axes from ``axis`` (default 1) on as one."""
    if site.model.opset >= 13:
        return along_axis(site)
    names = letters(site.rank())
    axis = site.axis(1)
    marked = [f"{n}!" if k >= axis else n for k, n in enumerate(names)]
    return line([" ".join(marked)], [" ".join(marked)])


def cumulate(site: Site) -> str:
    """CumSum, CumProd: the axis that operand 1 names is whole, for its order counts."""
    names = letters(site.rank())
    axis = site.fixed("axis", 1)
    assert axis is not None
    names[axis[0]] = f"_{names[axis[0]]}"
    return line([" ".join(names), "~"], [" ".join(names)])


def reverse_sequence(site: Site) -> str:
    """Time is whole; the lengths have the batch axis."""
    names = letters(site.rank())
    time, batch = (int(site.attribute(f"{x}_axis", k)) for k, x in enumerate(("time", "batch")))
    names[time] = f"_{names[time]}"
    return line([" ".join(names), names[batch]], [" ".join(names)])


def arg_reduce(site: Site) -> str:
    """ArgMax, ArgMin: the axis is whole, for its positions are the result."""
    names = letters(site.rank())
    axis = site.axis(0)
    result = ["1" if k == axis else n for k, n in enumerate(names)]
    if not site.attribute("keepdims", 1):
        del result[axis]
    names[axis] = "_" + names[axis]
    return line([" ".join(names)], [" ".join(result) or "~"])


def top_k(site: Site) -> str:
    """The axis is whole; values and indices carry the others."""
    names = letters(site.rank())
    result = list(names)
    axis = site.axis(-1)
    names[axis], result[axis] = "_a", "_b"
    return line([" ".join(names), "~"], [" ".join(result)])


def layer_norm(site: Site) -> str:
    """All axes from ``axis`` on are normalised together, so they mix."""
    names = letters(site.rank())
    axis = site.axis(-1)
    marked = [n if k < axis else f"{n}!" for k, n in enumerate(names)]
    value = " ".join(marked)
    operands = [value]
    for own in (site.shape(k) for k in range(1, len(site.node.inputs))):
        last = zip(marked, site.shape(0), strict=True)
        aligned = zip([*last][len(marked) - len(own) :], own, strict=True)
        operands.append(" ".join("1" if n == 1 != size else x for (x, size), n in aligned))
    statistic = " ".join(n if k < axis else "1" for k, n in enumerate(names))
    return line(operands, [value, statistic, statistic])


def batch_norm(site: Site) -> str:
    """In training mode the statistics are those of the batch; and once there was one a pixel."""
    if not site.attribute("spatial", 1):
        return line(["n c *s", *["c *s"] * 4], ["n c *s", *["c *s"] * 4])
    value = "n! c *s!" if site.attribute("training_mode", 0) else "n c *s"
    return line([value, "c", "c", "c", "c"], [value, "c", "c", "c", "c"])


def legacy_broadcast(site: Site) -> str:
    """Broadcasting from the right; before opset 7 the attribute ``axis`` could say otherwise."""
    if site.model.opset < 7 and "axis" in site.node.attributes:
        raise Unprunable("it broadcasts along an axis of its own, as before opset 7")
    return "... -> ..."


def prelu(site: Site) -> str:
    """Before opset 7 a slope of one axis was that of the channels."""
    if site.model.opset < 7 and site.rank(1) == 1 and site.shape(1) != (1,):
        return "n c *s, c -> n c *s"
    return "... -> ..."


def max_pool(site: Site) -> str:
    """The optional second result counts positions over all channels: then they mix."""
    mark = "!" if len(site.node.outputs) > 1 and site.node.outputs[1] else ""
    value = f"n{mark} c{mark} *"
    return line([value], [f"n{mark} c{mark} *_y", f"n{mark} c{mark} *_y"])


def group_norm(site: Site) -> str:
    """Opset 18 has a scale for each group, opset 21 one for each channel."""
    per_channel = site.shape(1) == site.shape(0)[1:2]
    scale = "(g c!)" if per_channel else "g"
    return f"n (g c!) *s!, {scale}, {scale} -> n (g c!) *s! | num_groups=g"


def mean_variance(site: Site) -> str:
    """Mean and variance over ``axes``."""
    names = letters(site.rank())
    for axis in site.attribute("axes", [0, 2, 3]):
        names[axis] = names[axis] + "!"
    return line([" ".join(names)], [" ".join(names)])


def quantize(site: Site) -> str:
    """Per tensor, per axis where the scale is a vector, or in whole blocks along the axis."""
    names = letters(site.rank())
    axis, block = site.axis(1, max(site.rank(), 2)), int(site.attribute("block_size", 0))
    if site.rank(1) == 0 or (site.shape(1) == (1,) and not block):
        return "..., ~, ~ -> ..."
    if not block:
        return line([" ".join(names), names[axis], names[axis]], [" ".join(names)])
    size = site.shape(0)[axis]
    if size is None or size % block:
        raise Unprunable("its last block is not full")
    scale = " ".join(names)
    names[axis] = f"({names[axis]} {block})"
    return line([" ".join(names), scale, scale], [" ".join(names)])


def gather(site: Site) -> str:
    """The gathered axis is whole; indices carry axes of their own."""
    names = letters(site.rank())
    axis = site.axis(0)
    indices = letters(site.rank(1), "i")
    result = [*names[:axis], *indices, *names[axis + 1 :]]
    names[axis] = "_" + names[axis]
    return line([" ".join(names), " ".join(indices) or "~"], [" ".join(result) or "~"])


def gather_elements(site: Site) -> str:
    """Axes that are not gathered are carried where indices run over all of them."""
    data, indices, result = [], [], []
    axis = site.axis(0)
    for k, sizes in enumerate(zip(site.shape(0), site.shape(1), strict=True)):
        same = f"a{k}" if len(set(sizes)) == 1 and None not in sizes else f"_i{k}"
        gathered = k == axis
        data.append(same if same[0] == "a" and not gathered else f"_a{k}")
        indices.append(f"i{k}" if gathered else same)
        result.append(indices[k])
    return line([" ".join(data), " ".join(indices)], [" ".join(result)])


def scatter_elements(site: Site) -> str:
    """Axes that are not scattered to are carried where indices run over all of them."""
    data, indices = [], []
    axis = site.axis(0)
    for k, sizes in enumerate(zip(site.shape(0), site.shape(1), strict=True)):
        same = k != axis and len(set(sizes)) == 1 and None not in sizes
        data.append(f"a{k}" if same else f"_a{k}")
        indices.append(f"a{k}" if same else f"_i{k}")
    own = " ".join(indices)
    return line([" ".join(data), own, own], [" ".join(data)])


def gather_nd(site: Site) -> str:
    """Axes that the index tuples don't reach are carried."""
    depth = site.shape(1)[-1]
    batch = int(site.attribute("batch_dims", 0))
    if depth is None:
        raise Unprunable("the length of its index tuples is unknown")
    names = letters(site.rank())
    lead = site.rank(1) - 1
    own = names[batch + depth :]
    source = [f"_{n}" if k < batch + depth else n for k, n in enumerate(names)]
    result = [*(f"_b{k}" for k in range(lead)), *own]
    return line([" ".join(source), "*"], [" ".join(result) or "~"])


def scatter_nd(site: Site) -> str:
    """Axes that the index tuples don't reach are carried, in data and in updates."""
    depth = site.shape(1)[-1]
    if depth is None:
        raise Unprunable("the length of its index tuples is unknown")
    names = letters(site.rank())
    own = names[depth:]
    data = [f"_{n}" if k < depth else n for k, n in enumerate(names)]
    updates = [*(f"_u{k}" for k in range(site.rank(1) - 1)), *own]
    return line([" ".join(data), "*", " ".join(updates)], [" ".join(data)])


def trilu(site: Site) -> str:
    """The last two axes are whole."""
    names = [*letters(site.rank() - 2), "_p", "_q"]
    return line([" ".join(names), "~"], [" ".join(names)])


def one_hot(site: Site) -> str:
    """The new axis is whole."""
    names = letters(site.rank())
    axis = site.axis(-1, site.rank() + 1)
    return line([" ".join(names), "~", "_"], [" ".join([*names[:axis], "_", *names[axis:]])])

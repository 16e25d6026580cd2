"""Computed rules of reductions, normalisations, gathers and scatters."""

from __future__ import annotations

from onnxprune.rules.site import Computed, Site, Unprunable, letters, line


def reduce(mark: str, axes_operand: int = 1) -> Computed:
    """Reduced axes vanish or become 1; ``mark`` is ``!`` where the reduction mixes."""

    def rule(site: Site) -> str:
        rank = site.rank()
        axes = site.fixed("axes", axes_operand)
        if not axes and site.attribute("noop_with_empty_axes", 0):
            return "... -> ..."
        gone = {a % rank for a in axes} if axes else set(range(rank))
        names = letters(rank)
        source = [f"{name}{mark}" if k in gone else name for k, name in enumerate(names)]
        keep = site.attribute("keepdims", 1)
        result = ["1" if k in gone else n for k, n in enumerate(names) if keep or k not in gone]
        return line([" ".join(source) or "~", "~"], [" ".join(result) or "~"])

    return rule


def along_axis(default: int, mark: str = "!") -> Computed:
    """One axis mixes (``!``) or stays whole (``_``); the others are carried."""

    def rule(site: Site) -> str:
        names = letters(site.rank())
        axis = site.axis(default)
        if site.model.opset < 13 and default == -1 and mark == "!":  # noqa: PLR2004
            return _flattened(site, names)
        names[axis] = f"_{names[axis]}" if mark == "_" else names[axis] + mark
        return line([" ".join(names)], [" ".join(names)])

    return rule


def _flattened(site: Site, names: list[str]) -> str:
    """Before opset 13 the softmax family took all axes from ``axis`` (default 1) on as one."""
    axis = int(site.attribute("axis", 1)) % len(names)
    marked = [f"{n}!" if k >= axis else n for k, n in enumerate(names)]
    return line([" ".join(marked)], [" ".join(marked)])


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
    start = site.rank() - site.rank(1)
    scale = " ".join(
        "1" if own == 1 and size != 1 else f"{name}!"
        for name, size, own in zip(
            names[start:], site.shape(0)[start:], site.shape(1), strict=True
        )
    )
    whole = " ".join(n if k < axis else f"{n}!" for k, n in enumerate(names))
    statistic = " ".join(n if k < axis else "1" for k, n in enumerate(names))
    return line([whole, scale or "~", scale or "~"], [whole, statistic, statistic])


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
    """Per tensor, or per axis where the scale is a vector."""
    if site.rank(1) == 0 or site.shape(1) == (1,):
        return "..., ~, ~ -> ..."
    if site.rank(1) != 1 or site.attribute("block_size", 0):
        raise Unprunable("it is quantised in blocks")
    names = letters(site.rank())
    axis = site.axis(1)
    return line([" ".join(names), names[axis], names[axis]], [" ".join(names)])


def gather(site: Site) -> str:
    """The gathered axis is whole; indices carry axes of their own."""
    names = letters(site.rank())
    axis = site.axis(0)
    indices = letters(site.rank(1), "i")
    result = [*names[:axis], *indices, *names[axis + 1 :]]
    names[axis] = "_" + names[axis]
    return line([" ".join(names), " ".join(indices) or "~"], [" ".join(result) or "~"])


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
    return line([" ".join(source), "~"], [" ".join(result) or "~"])


def scatter_nd(site: Site) -> str:
    """Axes that the index tuples don't reach are carried, in data and in updates."""
    depth = site.shape(1)[-1]
    if depth is None:
        raise Unprunable("the length of its index tuples is unknown")
    names = letters(site.rank())
    own = names[depth:]
    data = [f"_{n}" if k < depth else n for k, n in enumerate(names)]
    updates = [*(f"_u{k}" for k in range(site.rank(1) - 1)), *own]
    return line([" ".join(data), "~", " ".join(updates) or "~"], [" ".join(data)])


def trilu(site: Site) -> str:
    """The last two axes are whole."""
    names = [*letters(site.rank() - 2), "_p", "_q"]
    return line([" ".join(names), "~"], [" ".join(names)])


def one_hot(site: Site) -> str:
    """The new axis is whole."""
    names = letters(site.rank())
    axis = site.axis(-1, site.rank() + 1)
    return line([" ".join(names) or "~", "~", "~"], [" ".join([*names[:axis], "_", *names[axis:]])])

"""Computed rules of operators that cut, join and rearrange axes."""

from __future__ import annotations

from onnxprune.rules.site import Site, Unprunable, letters, line

FAR = 2**31 - 2**16  # an end beyond any size: exporters write INT32_MAX or INT64_MAX


def concat(site: Site) -> str:
    """``a p0 c, a p1 c -> a p0+p1 c``"""
    axis = site.axis(1)
    names = letters(site.rank())
    parts = [f"p{k}" for k in range(len(site.node.inputs))]
    operands = [" ".join(_with(names, axis, part)) for part in parts]
    return line(operands, [" ".join(_with(names, axis, "+".join(parts)))])


def split(site: Site) -> str:
    """``a p0+p1 c -> a p0 c, a p1 c``, the parts stated by an attribute or operand 1."""
    axis = site.axis(0)
    names = letters(site.rank())
    parts = [f"p{k}" for k in range(len(site.node.outputs))]
    old = site.model.opset < 13
    stated = f"{'split' if old else '[1]'}={' '.join(parts)}"
    operands = [" ".join(_with(names, axis, "+".join(parts))), "~"]
    return line(operands, [" ".join(_with(names, axis, part)) for part in parts], stated)


def slice_(site: Site) -> str:
    """``a x+b+y c -> a b c``; a step that divides the axis takes one of each ``(b 2)``."""
    shape, result = site.shape(0), site.result()
    starts, ends = _bounds(site, "starts", 1), _bounds(site, "ends", 2)
    axes = site.fixed("axes", 3) or list(range(len(starts)))
    steps = site.fixed("steps", 4) or [1] * len(starts)
    names = letters(len(shape))
    source, target = list(names), list(names)
    firsts, lasts = [], []
    for start, end, raw, step in zip(starts, ends, axes, steps, strict=True):
        axis = raw % len(shape)
        a, b, first, last = _cut(axis, shape[axis], result[axis], start, end, step)
        if "+" not in a + b and _may_cut(site, axis, start, end):
            same = shape[axis] == result[axis]
            a, b, first, last = f"_a{axis}", f"_a{axis}" if same else f"_b{axis}", "_", "_"
        source[axis], target[axis] = a, b
        firsts.append(first)
        lasts.append(last)
    clauses = [f"{'starts' if 'starts' in site.node.attributes else '[1]'}={' '.join(firsts)}"]
    clauses.append(f"{'ends' if 'ends' in site.node.attributes else '[2]'}={' '.join(lasts)}")
    return line([" ".join(source), "~"], [" ".join(target)], *clauses)


def _may_cut(site: Site, axis: int, start: int | None, end: int | None) -> bool:
    """Whether an axis may lose more at other dynamic sizes than at those at hand."""
    if start is None or end is None:
        return True
    shapes = [own.shapes.get(site.node.inputs[0]) for own in site.model.samples]
    is_dynamic = len({shape and shape[axis] for shape in shapes}) > 1
    return is_dynamic and (start < 0 or end < FAR)


def _bounds(site: Site, name: str, operand: int) -> list[int | None]:
    """What an operand states, an element each; None where that is computed at run time."""
    try:
        found = site.ints(name, operand)
    except Unprunable:
        count = site.shape(operand)[0]
        if count is None:
            raise
        return [None] * count
    assert found is not None
    return found


def _cut(
    axis: int, size: int | None, kept: int | None, start: int | None, end: int | None, step: int
) -> tuple[str, str, str, str]:
    """Operand axis, result axis, and what starts and ends state, for one sliced axis.

    ``_`` in a clause leaves the element as it is.
    """
    letter = f"a{axis}"
    whole = f"_a{axis}", f"_b{axis}", "_", "_"
    if (start is None or end is None) and step != 1:
        return whole
    if start is None or end is None:
        return (letter, letter, "_", "_") if size is not None and size == kept else whole
    if size is None:
        return (letter, letter, "_", "_") if start == 0 and end >= FAR and step == 1 else whole
    first = min(max(start + size if start < 0 else start, 0), size)
    last = min(max(end + size if end < 0 else end, 0), size)
    if step == 1 and first == 0 and last == size:
        return letter, letter, "_", letter
    if step == 1 and first < last:
        return _middle(axis, first, size - last, start >= 0)
    if step > 1 and size % step == 0 and first < step and last > size - step + first:
        return f"({letter} {step})", letter, "_", f"({letter} {step})"
    return whole


def _middle(axis: int, before: int, after: int, from_front: bool) -> tuple[str, str, str, str]:
    """``x+b+y`` states the size on which no dynamic size has a bearing."""
    letter, x, y = f"a{axis}", "", ""
    if before:
        x = f"x{axis}:{before}" if from_front else f"x{axis}"
    if after:
        y = f"y{axis}" if from_front else f"y{axis}:{after}"
    source = "+".join(part for part in (x, letter, y) if part)
    name = x.partition(":")[0]
    return source, letter, name or "_", f"{name}+{letter}" if name else letter


def pad(site: Site) -> str:
    """``c -> 16+c+16`` where an axis is padded with a constant; other modes keep it whole."""
    pads = site.ints("pads", 1) if "pads" in site.node.attributes or site.has(1) else None
    pads = site.ints("paddings", 1) if pads is None else pads
    assert pads is not None
    rank = site.rank()
    given = site.fixed("axes", 3)
    axes = list(range(rank)) if given is None else [a % rank for a in given]
    source = letters(rank)
    target = list(source)
    constant = site.attribute("mode", b"constant") == b"constant"
    for position, axis in enumerate(axes):
        before, after = pads[position], pads[position + len(axes)]
        if before == 0 and after == 0:
            continue
        if not constant or before is None or after is None or before < 0 or after < 0:
            source[axis], target[axis] = f"_a{axis}", f"_b{axis}"
        else:
            parts = [str(before) if before else "", source[axis], str(after) if after else ""]
            target[axis] = "+".join(part for part in parts if part)
    return line([" ".join(source), "~"], [" ".join(target)])


def transpose(site: Site) -> str:
    """The letters in the order of ``perm``."""
    names = letters(site.rank())
    order = site.attribute("perm", list(reversed(range(len(names)))))
    return line([" ".join(names)], [" ".join(names[k] for k in order)])


def expand(site: Site) -> str:
    """Axes of size 1 grow into axes that are free: the shape operand states them."""
    target = site.result()
    shape = (1,) * (len(target) - site.rank()) + site.shape(0)
    names = letters(len(target))
    operand = [
        "1" if own == 1 and size != 1 else name
        for own, size, name in zip(shape, target, names, strict=True)
    ]
    length = _length(site, 1, len(target))
    sizes = _bounds(site, "shape", 1) if length else []
    last = zip(sizes, names[len(target) - length :], target[len(target) - length :], strict=True)
    # An element of 1 leaves the axis as it comes, so that it states no size of it.
    stated = " ".join("_" if n == 1 != size else name for n, name, size in last)
    kept = " ".join(operand[len(target) - site.rank() :])
    return line([kept or "~", "~"], [" ".join(names)], f"[1]={stated}")


def _length(site: Site, operand: int, default: int) -> int:
    shape = site.shape(operand)
    return default if shape[0] is None else shape[0]


def tile(site: Site) -> str:
    """``c -> (3 c)``: the copies stay, what is copied may shrink; dynamic copies keep it whole."""
    repeats = site.ints("repeats", 1)
    assert repeats is not None
    names = letters(len(repeats))
    source = [f"_{name}" if n is None else name for n, name in zip(repeats, names, strict=True)]
    result = [
        f"_b{k}" if n is None else name if n == 1 else f"({n} {name})"
        for k, (n, name) in enumerate(zip(repeats, names, strict=True))
    ]
    return line([" ".join(source), "~"], [" ".join(result)])


def resize(site: Site) -> str:
    """Axes that are not resized are carried; the operand ``sizes`` states them all."""
    rank = site.rank()
    source, target = letters(rank), letters(rank)
    given = site.fixed("axes", len(site.node.inputs))
    axes = list(range(rank)) if given is None else [a % rank for a in given]
    factors = _factors(site, len(axes))
    for position, axis in enumerate(axes):
        same = site.shape(0)[axis] == site.result()[axis] is not None
        if not same or factors[position] != 1 or not _stays_in_place(site, position, len(axes)):
            source[axis], target[axis] = f"_a{axis}", f"_b{axis}"
    clauses = [f"[3]={' '.join(target[a] for a in axes)}"] if site.has(3) else []
    return line([" ".join(source), "~"], [" ".join(target)], *clauses)


def _factors(site: Site, count: int) -> list[float | None]:
    """The stated scale of each axis; 1 where sizes are stated instead, None where unknown."""
    if "scales" in site.node.attributes:
        return list(site.node.attributes["scales"])
    operand = 2 if site.model.opset > 10 else 1  # behind the region of interest, since it is there
    if not site.has(operand) or site.shape(operand) == (0,):
        return [1.0] * count
    values = site.sample.constants.get(site.node.inputs[operand])
    return [None] * count if values is None else values.reshape(-1).tolist()


def _stays_in_place(site: Site, position: int, count: int) -> bool:
    """Whether an axis of scale 1 is copied index by index."""
    if site.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return False
    mode = site.attribute("coordinate_transformation_mode", b"half_pixel")
    if mode == b"tf_half_pixel_for_nn":
        return bool(site.attribute("nearest_mode", b"") in (b"floor", b"round_prefer_floor", b""))
    if mode != b"tf_crop_and_resize":
        return True
    roi = site.sample.constants.get(site.node.inputs[1]) if site.has(1) else None
    return roi is not None and (roi[position], roi[position + count]) == (0, 1)


def depth_to_space(site: Site) -> str:
    """Pixel shuffle: the block is whole, the channels are free."""
    return f"n {_depth(site)} h w -> n c (h _p) (w _q) | blocksize=_p"


def space_to_depth(site: Site) -> str:
    """The reverse of pixel shuffle."""
    return f"n c (h _p) (w _q) -> n {_depth(site)} h w | blocksize=_p"


def _depth(site: Site) -> str:
    return "(c _p _q)" if site.attribute("mode", b"DCR") == b"CRD" else "(_p _q c)"


def unsqueeze(site: Site) -> str:
    """Axes of size 1 come in."""
    axes = site.fixed("axes", 1) or []
    rank = site.rank() + len(axes)
    new = {a % rank for a in axes}
    names = iter(letters(site.rank()))
    result = ["1" if k in new else next(names) for k in range(rank)]
    return line([" ".join(letters(site.rank())) or "~", "~"], [" ".join(result)])


def squeeze(site: Site) -> str:
    """Axes of size 1 go."""
    shape = site.shape(0)
    axes = site.fixed("axes", 1)
    clauses = []
    if axes is None:
        axes = [k for k, n in enumerate(shape) if n == 1]
        stated = site.model.shape(site.node.inputs[0]) or (None,)
        if None in stated:
            raise Unprunable("which axes it squeezes depends on dynamic sizes")
        # Said now, for another axis may lose all but one of its indices.
        where = "axes" if site.model.opset < 13 else "[1]"
        clauses = [f"{where}={' '.join(map(str, axes))}"] if axes else []
    gone = {a % len(shape) for a in axes}
    names = letters(len(shape))
    source = ["1" if k in gone else name for k, name in enumerate(names)]
    kept = [name for k, name in enumerate(names) if k not in gone]
    return line([" ".join(source), "~"], [" ".join(kept)], *clauses)


def constant_of_shape(site: Site) -> str:
    """Every axis is free: the operand states it."""
    names = letters(len(site.result()))
    return line(["~"], [" ".join(names) or "~"], *([f"[0]={' '.join(names)}"] if names else []))


def _with(names: list[str], axis: int, name: str) -> list[str]:
    return [*names[:axis], name, *names[axis + 1 :]]

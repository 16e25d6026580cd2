"""Computed rules of operators that cut, join and rearrange axes."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.notation import Shape
from onnxprune.rules.site import Site, Unprunable, letters, line

FAR = 2**31 - 2**16  # an end beyond any size: exporters write INT32_MAX or INT64_MAX


def concat(site: Site) -> str:
    """``a p0 c, a p1 c -> a p0+p1 c``"""
    axis = site.axis(0)
    names = letters(site.rank())
    parts = [f"p{k}" for k in range(len(site.node.inputs))]
    operands = [" ".join(_with(names, axis, part)) for part in parts]
    return line(operands, [" ".join(_with(names, axis, "+".join(parts)))])


def split(site: Site) -> str:
    """``a p0+p1 c -> a p0 c, a p1 c``, the parts stated by an attribute or operand 1."""
    axis = site.axis(0)
    names = letters(site.rank())
    parts = [f"p{k}" for k in range(len(site.node.outputs))]
    old = site.model.opset < 13  # noqa: PLR2004
    stated = f"{'split' if old else '[1]'}={' '.join(parts)}"
    operands = [" ".join(_with(names, axis, "+".join(parts))), "~"]
    return line(operands, [" ".join(_with(names, axis, part)) for part in parts], stated)


def slice_(site: Site) -> str:
    """``a x+b+y c -> a b c``; a step that divides the axis takes one of each ``(b _s)``."""
    shape, result = site.shape(0), site.result()
    starts, ends = site.ints("starts", 1), site.ints("ends", 2)
    assert starts is not None
    assert ends is not None
    axes = site.fixed("axes", 3) or list(range(len(starts)))
    steps = site.fixed("steps", 4) or [1] * len(starts)
    names = letters(len(shape))
    source, target = list(names), list(names)
    firsts, lasts = [], []
    for start, end, raw, step in zip(starts, ends, axes, steps, strict=True):
        axis = raw % len(shape)
        a, b, first, last = _cut(axis, shape[axis], result[axis], start, end, step)
        source[axis], target[axis] = a, b
        firsts.append(first)
        lasts.append(last)
    clauses = [f"{'starts' if 'starts' in site.node.attributes else '[1]'}={' '.join(firsts)}"]
    clauses.append(f"{'ends' if 'ends' in site.node.attributes else '[2]'}={' '.join(lasts)}")
    return line([" ".join(source), "~"], [" ".join(target)], *clauses)


def _cut(
    axis: int, size: int | None, kept: int | None, start: int | None, end: int | None, step: int
) -> tuple[str, str, str, str]:
    """Operand axis, result axis, and what starts and ends state, for one sliced axis.

    ``_`` in a clause leaves the element as it is.
    """
    letter = f"a{axis}"
    whole = f"_a{axis}", f"_b{axis}", "_", "_"
    if start is None or end is None:
        return (letter, letter, "_", "_") if size is not None and size == kept else whole
    if size is None:
        return (letter, letter, "_", "_") if start == 0 and end >= FAR and step == 1 else whole
    first = min(max(start + size if start < 0 else start, 0), size)
    last = min(max(end + size if end < 0 else end, 0), size)
    if step == 1 and first == 0 and last == size:
        return letter, letter, "_", letter
    if step == 1 and first < last:
        x, y = f"x{axis}" if first else "", f"y{axis}" if last < size else ""
        source = "+".join(part for part in (x, letter, y) if part)
        return source, letter, x or "_", f"{x}+{letter}" if x else letter
    if step > 1 and size % step == 0 and first < step and last > size - step + first:
        return f"({letter} {step})", letter, "_", f"({letter} {step})"
    return whole


def pad(site: Site) -> str:
    """``c -> 16+c+16`` where an axis is padded with a constant; other modes keep it whole."""
    pads = site.ints("pads", 1) if "pads" in site.node.attributes or site.has(1) else None
    pads = site.ints("paddings", 1) if pads is None else pads
    assert pads is not None
    rank = site.rank()
    axes = [a % rank for a in site.fixed("axes", 3) or range(rank)]
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
    stated = " ".join(names[len(target) - _length(site, 1, len(target)) :])
    kept = " ".join(operand[len(target) - site.rank() :])
    return line([kept or "~", "~"], [" ".join(names)], f"[1]={stated}")


def _length(site: Site, operand: int, default: int) -> int:
    shape = site.shape(operand)
    return default if shape[0] is None else shape[0]


def tile(site: Site) -> str:
    """``c -> (3 c)``: the copies stay, what is copied may shrink."""
    repeats = site.fixed("repeats", 1)
    assert repeats is not None
    names = letters(len(repeats))
    result = [
        name if n == 1 else f"({n} {name})" for n, name in zip(repeats, names, strict=True)
    ]
    return line([" ".join(names), "~"], [" ".join(result)])


def resize(site: Site) -> str:
    """Axes that keep their size are carried; the operand ``sizes`` states them all."""
    names = letters(site.rank())
    pairs = list(zip(site.shape(0), site.result(), strict=True))
    source = [
        name if a == b and a is not None else f"_{name}"
        for name, (a, b) in zip(names, pairs, strict=True)
    ]
    target = [
        name if a == b and a is not None else f"_b{k}"
        for k, (name, (a, b)) in enumerate(zip(names, pairs, strict=True))
    ]
    if not site.has(3):
        return line([" ".join(source), "~"], [" ".join(target)])
    axes = site.fixed("axes", len(site.node.inputs)) or list(range(len(names)))
    stated = " ".join(target[a % len(names)] for a in axes)
    return line([" ".join(source), "~"], [" ".join(target)], f"[3]={stated}")


def depth_to_space(site: Site) -> str:
    """Pixel shuffle: the block is whole, the channels are free."""
    if site.attribute("mode", b"DCR") == b"DCR":
        return "n (_p _q c) h w -> n c (h _p) (w _q) | blocksize=_p"
    return "n (c _p _q) h w -> n c (h _p) (w _q) | blocksize=_p"


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
    gone = {k for k, n in enumerate(shape) if n == 1} if axes is None else set(axes)
    gone = {a % len(shape) for a in gone}
    names = letters(len(shape))
    source = ["1" if k in gone else name for k, name in enumerate(names)]
    kept = [name for k, name in enumerate(names) if k not in gone]
    return line([" ".join(source), "~"], [" ".join(kept) or "~"])


def reshape(site: Site) -> str:
    """Cut both shapes into the smallest blocks of equal product; ``[1]`` states the result."""
    source, target = blocks(site.shape(0), site.result())
    clauses = [f"[1]={' '.join(_unless_special(site, target))}"] if target else []
    return line([" ".join(source) or "~", "~"], [" ".join(target) or "~"], *clauses)


def _unless_special(site: Site, target: list[str]) -> list[str]:
    """What the shape operand states: its elements 0 (copy) and -1 (infer) stay as they are."""
    try:
        stated = site.ints("shape", 1) or []
    except Unprunable:
        return target
    return ["_" if n in (0, -1) else axis for n, axis in zip(stated, target, strict=True)]


def blocks(source: Shape, target: Shape) -> tuple[list[str], list[str]]:
    """Axes of both sides of a reshape in the notation.

    Unknown sizes are matched from both ends: only what lies between stays whole.
    """
    if None not in source and None not in target:
        return _written(_known(source), _known(target))
    return _around_unknown(source, target)


def _around_unknown(source: Shape, target: Shape) -> tuple[list[str], list[str]]:
    """At most one unknown size a side: equal sizes from the left, blocks from the right."""
    if source.count(None) != 1 or target.count(None) != 1:
        return [f"_a{k}" for k in range(len(source))], [f"_b{k}" for k in range(len(target))]
    i, j = source.index(None), target.index(None)
    a, b = source[i + 1 :], target[j + 1 :]
    right = _product(_known(a)) == _product(_known(b))
    left = _product(_known(source[:i])) == _product(_known(target[:j]))
    if not (left and right):
        return [f"_a{k}" for k in range(len(source))], [f"_b{k}" for k in range(len(target))]
    head_a, head_b = blocks(source[:i], target[:j])
    tail_a, tail_b = blocks(a, b)
    moved = [[_renamed(x) for x in side] for side in (tail_a, tail_b)]
    return [*head_a, "u", *moved[0]], [*head_b, "u", *moved[1]]


def _renamed(axis: str) -> str:
    return axis.replace("r", "t").replace("_a", "_c").replace("_b", "_d")


def _known(shape: Shape) -> list[int]:
    return [n for n in shape if n is not None]


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


def _cut_blocks(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Positions of the axes on both sides, block by block; axes of size 1 are left out."""
    a = [k for k, n in enumerate(source) if n != 1]
    b = [k for k, n in enumerate(target) if n != 1]
    if _product(source) != _product(target) or 0 in source:
        raise Unprunable("it changes the number of elements, or has none")
    found = []
    while a:
        left, right = [a.pop(0)], [b.pop(0)]
        sizes = [source[left[0]], target[right[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                left.append(a.pop(0))
                sizes[0] *= source[left[-1]]
            else:
                right.append(b.pop(0))
                sizes[1] *= target[right[-1]]
        found.append((left, right))
    return found


def _refined(sizes_a: Sequence[int], sizes_b: Sequence[int]) -> list[tuple[int, int]] | None:
    """The letters of one block in row-major order, as pairs (axis of a, axis of b).

    Two pointers: the smaller rest becomes a letter of both axes where it divides the larger;
    None where it does not.
    """
    a, b = list(sizes_a), list(sizes_b)
    found, i, j = [], 0, 0
    while i < len(a):
        small, large = sorted((a[i], b[j]))
        if large % small:
            return None
        found.append((i, j))
        a[i], b[j] = a[i] // small, b[j] // small
        i, j = i + (a[i] == 1), j + (b[j] == 1)
    return found


def _written(source: Sequence[int], target: Sequence[int]) -> tuple[list[str], list[str]]:
    """Both sides of a reshape of known sizes."""
    a: list[list[str]] = [[] for _ in source]
    b: list[list[str]] = [[] for _ in target]
    count = 0
    for left, right in _cut_blocks(source, target):
        pairs = _refined([source[k] for k in left], [target[k] for k in right])
        if pairs is None:
            for side, positions, name in ((a, left, "_a"), (b, right, "_b")):
                for k in positions:
                    side[k] = [f"{name}{k}"]
            continue
        for i, j in pairs:
            a[left[i]].append(f"r{count}")
            b[right[j]].append(f"r{count}")
            count += 1
    return [_product_of(x) for x in a], [_product_of(x) for x in b]


def _product_of(names: list[str]) -> str:
    if not names:
        return "1"
    return names[0] if len(names) == 1 else f"({' '.join(names)})"


def flatten(site: Site) -> str:
    """A reshape to two axes that states nothing."""
    source, target = blocks(site.shape(0), site.result())
    return line([" ".join(source) or "~"], [" ".join(target)])


def constant_of_shape(site: Site) -> str:
    """Every axis is free: the operand states it."""
    names = letters(len(site.result()))
    return line(["~"], [" ".join(names) or "~"], *([f"[0]={' '.join(names)}"] if names else []))


def _with(names: list[str], axis: int, name: str) -> list[str]:
    return [*names[:axis], name, *names[axis + 1 :]]

"""Computed rules of Reshape and Flatten: cut both shapes into the smallest blocks."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.notation import Shape
from onnxprune.rules.site import Site, Unprunable, line


def reshape(site: Site) -> str:
    """Cut both shapes into the smallest blocks of equal product; ``[1]`` states the result."""
    source, target = blocks(site.shape(0), site.result())
    stated = " ".join(_unless_special(site, source, target))
    where = "shape" if "shape" in site.node.attributes else "[1]"
    clauses = [f"{where}={stated}"] if target else []
    return line([" ".join(source) or "~", "~"], [" ".join(target) or "~"], *clauses)


def _unless_special(site: Site, source: list[str], target: list[str]) -> list[str]:
    """What the shape states: -1 (infer) stays, and so does 0 (copy) where the axis is the same."""
    try:
        stated = site.ints("shape", 1) or []
    except Unprunable:
        return target
    copied = [*source, *target][: len(target)]
    return [
        "_" if n == -1 or (n == 0 and own == axis) else axis
        for n, own, axis in zip(stated, copied, target, strict=True)
    ]


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

"""Computed rules of operators that read tables of which several numbers share a byte."""

from __future__ import annotations

from onnxprune.rules.site import Site, Unprunable, letters, line


def gather_blocks(site: Site) -> str:
    """GatherBlockQuantized: rows of a table, quantised in blocks along its last axis.

    Whole blocks go. How many numbers share a byte follows from the sizes: the scales (rows, blocks)
    say how many there are.
    """
    rank, block = site.rank(), int(site.attribute("block_size", 128))
    if int(site.attribute("gather_axis", 0)) != 0 or not block:
        raise Unprunable("it gathers along another axis than the first, or has one block a row")
    if int(site.attribute("quantize_axis", 1)) % rank != rank - 1:
        raise Unprunable("its blocks don't run along the last axis")
    width, blocks = site.shape(0)[-1], site.shape(2)[-1]
    if not width or not blocks or blocks * block % width:
        raise Unprunable("its last block is not full")
    if site.has(3) and site.shape(3) != site.shape(2):
        raise Unprunable("its zero points share bytes")
    rows, places = ["_v", *letters(rank - 2)], letters(site.rank(1), "i")
    table = " ".join([*rows, f"(j {block * width // (blocks * block)})"])
    scale = " ".join([*rows, "j"])
    result = " ".join([*places, *rows[1:], f"(j {block})"])
    return line([table, " ".join(places) or "~", scale, scale], [result])

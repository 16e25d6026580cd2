"""Computed rules of fused transformer blocks: attention, rotary embeddings, norms with a skip.

Letters: b batch, s queries, t keys, l keys of the past, h heads (k of keys, r of queries for each
of them), d what queries and keys have in common, v what values have. Attention mixes keys (t and
l), and d as well where its scale is one over the root of the head's size.
"""

from __future__ import annotations

from onnxprune.rules.site import Site, Unprunable, letters, line

CAUSAL = ("unidirectional", "is_causal", "causal")


def _line(site: Site, operands: list[str], results: list[str], *clauses: str) -> str:
    """The row, of the operands and results that the node has."""
    named = operands[: len(site.node.inputs)]
    given = [axes if site.has(k) else "~" for k, axes in enumerate(named)]
    return line(given, results[: len(site.node.outputs)], *clauses)


def skip_norm(site: Site) -> str:
    """The sum of a value, a skip and a bias is normalised over the last axis."""
    names = [*letters(site.rank() - 1), "c!"]
    value, statistic = " ".join(names), " ".join([*names[:-1], "1"])
    own = zip(names[-site.rank(1) :], site.shape(0)[-site.rank(1) :], site.shape(1), strict=True)
    skip = " ".join("1" if size == 1 != whole else name for name, whole, size in own)
    return _line(site, [value, skip, "c!"], [value, statistic, statistic, value])


def embed_norm(site: Site) -> str:
    """Three tables are gathered, summed and normalised; positions count where none are given."""
    s = "s" if site.has(8) and not site.has(7) else "_s"
    place = "b" if site.has(8) and site.shape(8)[:1] == site.shape(0)[:1] else "1"
    tables = ["_v c!", "_p c!", "_u c!", "c!", "c!"]
    operands = [f"b {s}", f"b {s}", *tables, f"b {s}", f"{place} {s}"]
    return _line(site, operands, [f"b {s} c!", "b", f"b {s} c!"])


def _head(site: Site, added: bool = False) -> str:
    """The letter d: exact where queries and keys are all that has it, and the scale is stated.

    It mixes where a bias is added to them inside (no mask of an operand takes its effect away),
    or where keys are a result.
    """
    shown = len(site.node.outputs) > 1 and bool(site.node.outputs[1])
    return "d" if site.attribute("scale", 0.0) and not (added or shown) else "d!"


def _queries(site: Site) -> str:
    """The letter s, whole where a query sees the keys up to its own position."""
    return "_s" if any(site.attribute(name, 0) for name in CAUSAL) else "s"


def _broadcast(site: Site, operand: int, axes: list[str]) -> str:
    """The pattern of a mask or bias that is broadcast to these axes (b, h, s, t)."""
    if not site.has(operand):
        return "~"
    own = site.shape(operand)
    pairs = zip(axes[4 - len(own) :], own, strict=True)
    return " ".join("1" if size == 1 else name for name, size in pairs) or "~"


def _padding(site: Site, operand: int, s: str, t: str) -> str:
    """The pattern of a mask of keys: lengths (b), (b, t), or (b, s, t)."""
    if not site.has(operand):
        return "~"
    if site.rank(operand) > 3 or (
        site.rank(operand) == 1 and site.shape(operand)[0] != site.shape(0)[0]
    ):
        raise Unprunable("its mask holds starts and ends, or has four axes")
    return ["b", f"b {t}", f"b {s} {t}"][site.rank(operand) - 1]


def multi_head(site: Site) -> str:
    """MultiHeadAttention: (h d) queries and keys, (h v) values."""
    if not (site.has(1) and site.has(2)) or site.rank(0) != 3 or site.rank(1) == 5:
        raise Unprunable("queries, keys and values are packed into one operand")
    if site.has(8) or site.has(9):
        raise Unprunable("it writes into a cache that it shares with its operand")
    past, split = site.has(6), site.rank(1) == 4
    alike = past or split  # then the kernel wants values of the same size as keys
    d, s = _head(site, alike or site.has(3)), _queries(site)
    v, t = d if alike else "v", "l!+t!" if past else "t!"
    key, value = f"b t! (h {d})", f"b t! (h {v})"
    if split:
        key, value = f"b h t! {d}", f"b h t! {v}"
    operands = [f"b {s} (h {d})", key, value, f"(h {d})+(h {d})+(h {v})", _padding(site, 4, s, t)]
    operands.append(_broadcast(site, 5, ["b", "h", s, t]))
    operands += [f"b h l! {d}", f"b h l! {v}"] if past else []
    results = [f"b {s} (h {v})", f"b h {t} {d}", f"b h {t} {v}", f"b h {s} {t}"]
    return _line(site, operands, results, "num_heads=h", _work("b h", s, v, past))


def decoder(site: Site) -> str:
    """DecoderMaskedMultiHeadAttention: one query, behind a buffer of the past or across to keys.

    A head's size stays whole: kernels lay the buffer out by it.
    """
    if not (site.has(1) and site.has(2)):
        raise Unprunable("queries, keys and values are packed into one operand")
    heads, width = int(site.attribute("num_heads", 0)), site.shape(0)[2]
    if width is None or not heads:
        raise Unprunable("the size of its heads is unknown")
    d = f"_d:{width // heads}"
    value = f"b _s (h {d})"
    key = value if site.rank(1) == 3 else f"b h _t {d}"
    past = f"b h _m {d}"
    operands = [value, key, key, "b _n", _broadcast(site, 4, ["b", "h", "_s", "_p"]), past, past]
    operands += ["~", "~", "b _w _m", f"(h {d})+(h {d})+(h {d})"]
    work = f"b h _s _d {'_m' if site.has(5) else '_t'}"
    results = [value, past, past, "b h _s _q"]
    return _line(site, operands, results, "num_heads=h", f"macs={work} + {work}")


def _work(batch: str, s: str, v: str, past: bool, own: str = "t") -> str:
    """The multiplications of queries with keys, and of what comes of them with values."""
    keys = ("l", own.rstrip("!")) if past else (own.rstrip("!"),)
    terms = [f"{batch} {s} {t} {x.rstrip('!')}" for x in ("d", v) for t in keys]
    return f"macs={' + '.join(terms)}"


def packed(site: Site) -> str:
    """Attention of com.microsoft: one weight gives queries, keys and values."""
    if site.attribute("do_rotary", 0) or site.has(6):
        raise Unprunable("it rotates heads, or writes into a cache that it shares")
    d = "d!"  # it is in the weight twice, so that no one mask takes its effect away
    sizes = "qkv_hidden_sizes" in site.node.attributes
    own = f"(h {d})+(h {d})+(h v)" if sizes else f"(3 h {d})"
    v = "v" if sizes else d
    return _packed(site, [own, own], (3, 4, 5), d, v, sizes)


def packed_integers(site: Site) -> str:
    """QAttention: one weight of integers gives queries, keys and values."""
    if site.attribute("do_rotary", 0):
        raise Unprunable("it rotates heads")
    d = "d!"
    own = f"(3 h {d})"
    each = [own if site.has(k) and site.shape(k) != (1,) and site.rank(k) else "~" for k in (4, 7)]
    return _packed(site, [own, own, "~", each[0]], (5, 8, None), d, d, False, ["~", each[1]])


def _packed(
    site: Site,
    own: list[str],
    places: tuple[int, int, int | None],
    d: str,
    v: str,
    sizes: bool,
    between: list[str] | None = None,
) -> str:
    mask, past, bias = places
    t = "l!+s!" if site.has(past) else "s!"
    operands = ["b s! i", f"i {own[0]}", *own[1:], _padding(site, mask, "s!", t), *(between or [])]
    operands.append(f"2 b h l! {d}" if site.has(past) else "~")
    if bias is not None:
        operands.append(_broadcast(site, bias, ["b", "h", "s!", t]))
    clauses = ["num_heads=h"]
    clauses += [f"qkv_hidden_sizes=(h {d}) (h {d}) (h {v})"] if sizes else []
    x, y = d.rstrip("!"), v.rstrip("!")
    macs = f"macs=b s i h {x} + b s i h {x} + b s i h {y}"
    return _line(site, operands, [f"b s! (h {v})", f"2 b h {t} {d}"], *clauses, macs)


def grouped(site: Site) -> str:
    """GroupQueryAttention: r query heads for each of k heads of keys and values.

    A head's size stays whole: kernels want multiples of 8 or 16.
    """
    if any(site.has(k) for k in (12, 13)):
        raise Unprunable("its cache is quantised")
    heads, pairs = int(site.attribute("num_heads", 0)), int(site.attribute("kv_num_heads", 0))
    width, whole = site.shape(0)[2], not site.has(1)
    if width is None or not heads:
        raise Unprunable("the size of its heads is unknown")
    d = f"_d:{width // (heads + 2 * pairs if whole else heads)}"
    query = f"(k r {d})+(k {d})+(k {d})" if whole else f"(k r {d})"
    value = "~" if whole else f"b _s (k {d})"
    cache = f"b k _l {d}"
    operands = [f"b _s {query}", value, value, cache, cache]
    operands += ["b" if site.rank(5) == 1 else "b 1", "~", "_m _c", "_m _c", "b _s"]
    operands += [_broadcast(site, 10, ["b", "(k r)", "_s", "_p"]), "(k r)", "~", "~", d, d]
    made = f"b k _p {d}"
    results = [f"b _s (k r {d})", made, made, "b (k r) _s _q"]
    return _line(site, operands, results, "num_heads=(k r)", "kv_num_heads=k")


def attention(site: Site) -> str:
    """Attention of ai.onnx: r query heads for each of k heads; 3 axes with heads packed, or 4."""
    d, s, past = _head(site), _queries(site), site.has(4)
    own = "t!"
    if site.has(6) or any("window" in name for name in site.node.attributes):
        s, own = "_s", "_t"  # positions are counted: lengths, or how far a query sees
    t = f"l!+{own}" if past else own
    flat = site.rank(0) == 3
    operands = [f"b (k r) {s} {d}", f"b k {own} {d}", f"b k {own} v"]
    if flat:
        operands = [f"b {s} (k r {d})", f"b {own} (k {d})", f"b {own} (k v)"]
    if site.has(3) and site.shape(3)[-1] not in (1, *_lengths(site, flat)):
        raise Unprunable("its mask covers a part of the keys")
    operands.append(_broadcast(site, 3, ["b", "(k r)", s, t]))
    operands += [f"b k l! {d}", "b k l! v"] if past else ["~", "~"]
    operands.append("b")
    value = f"b {s} (k r v)" if flat else f"b (k r) {s} v"
    results = [value, f"b k {t} {d}", f"b k {t} v", f"b (k r) {s} {t}"]
    clauses = ["q_num_heads=(k r)", "kv_num_heads=k"] if flat else []
    return _line(site, operands, results, *clauses, _work("b k r", s, "v", past, own))


def _lengths(site: Site, flat: bool) -> tuple[int | None]:
    """How many keys there are, those of the past among them."""
    own = site.shape(1)[1 if flat else 2]
    before = site.shape(4)[2] if site.has(4) else 0
    return (None if own is None or before is None else own + before,)


def rotary(site: Site) -> str:
    """RotaryEmbedding of com.microsoft: pairs of a head's numbers turn, so it is whole."""
    if site.attribute("is_packed_batching", 0):
        raise Unprunable("it packs sequences of several lengths")
    offset = site.shape(1) == (1,)
    s = "_s" if offset else "s"
    return _rotary(site, s, 2, ["~" if offset else "b s", "_m _c", "_m _c"])


def rotary_embedding(site: Site) -> str:
    """RotaryEmbedding of ai.onnx: pairs of a head's numbers turn, so it is whole."""
    if site.has(3):
        return _rotary(site, "s", 1, ["_m _c", "_m _c", "b s"])
    return _rotary(site, "s", 1, ["b s _c", "b s _c"])


def _rotary(site: Site, s: str, table: int, others: list[str]) -> str:
    if site.rank() == 4:
        return _line(site, [f"b h {s} _d", *others], [f"b h {s} _d"])
    heads, width = int(site.attribute("num_heads", 0)), site.shape(0)[-1]
    half = site.shape(table)[-1]
    if width is None or half is None:
        raise Unprunable("the size of its heads is unknown")
    value = f"b {s} (h _d:{width // heads if heads else 2 * half})"
    return _line(site, [value, *others], [value], *(["num_heads=h"] if heads else []))

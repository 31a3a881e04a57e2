"""The recorded evaluation cases, a naive evaluator in exact arithmetic, and how results are compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent / "fixtures" / "eval"
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())["cases"]}
NAMES = ("q_feats", "g_feats", "q_pids", "g_pids", "q_camids", "g_camids")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arrays(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return [file[key] for key in NAMES]


def exact_order(query, gallery, metric):
    """The gallery's indices by distance from `query`, ties by index, in whole numbers: nothing is rounded."""
    ratios = [[float(x).as_integer_ratio() for x in row] for row in (query, *gallery)]
    unit = max(below for row in ratios for _, below in row)  # powers of two, so the others divide it
    q, *rows = ([above * (unit // below) for above, below in row] for row in ratios)
    if metric == "euclidean":
        return sorted(range(len(rows)), key=lambda j: sum((a - b) ** 2 for a, b in zip(q, rows[j], strict=True)))
    dots = [sum(a * b for a, b in zip(q, row, strict=True)) for row in rows]
    squares = [sum(a * a for a in row) or 1 for row in rows]
    # dot |dot| / square falls as the distance rises; so many more digits that unequal quotients stay unequal.
    digits = 2 * max(squares).bit_length() + 1
    return sorted(range(len(rows)), key=lambda j: -((dots[j] * abs(dots[j]) << digits) // squares[j]))


STANDARD = (("pid", "camid"),)


def left_out(query, item, exclude):
    """Whether a gallery item, a dict of its ids, is left out for a query, by every rule in turn; -1: unknown."""

    def holds(name):
        a, b = query[name.strip("!")], item[name.strip("!")]
        return (a != b if name[0] == "!" else a == b) and (name in ("pid", "camid") or -1 not in (a, b))

    return any(all(map(holds, rule)) for rule in exclude)


def naive(feats, g_feats, pids, g_pids, camids, g_camids, metric="cosine", exclude=STANDARD, other_ids=None):
    """(ap, inp, first match, order of the kept gallery) of each query, one at a time, in exact arithmetic."""
    out = []
    for i, query in enumerate(np.asarray(feats, np.float64)):
        columns = {"pid": (pids, g_pids), "camid": (camids, g_camids)} | (other_ids or {})
        own = {name: q[i] for name, (q, _) in columns.items()}
        items = [{name: g[j] for name, (_, g) in columns.items()} for j in range(len(g_pids))]
        keep = np.array([item["pid"] != -1 and not left_out(own, item, exclude) for item in items])
        order = np.array(exact_order(query, np.asarray(g_feats, np.float64), metric))
        order = order[keep[order]]
        ranks = np.flatnonzero(g_pids[order] == pids[i]) + 1
        if len(ranks):
            nth = np.arange(1, len(ranks) + 1)
            out.append(((nth / ranks).mean(), len(ranks) / ranks[-1], ranks[0], order))
        else:
            out.append((np.nan, np.nan, -1, order))
    return out


def check(result, expected):
    for key in ("mAP", "mINP"):
        assert getattr(result, key) == pytest.approx(expected[key], abs=1e-9)
    assert (result.num_valid, result.num_query) == (expected["num_valid"], expected["num_query"])
    for k, value in expected["cmc"].items():
        assert result.rank(int(k)) == pytest.approx(value, abs=1e-9)
        assert result.cmc[int(k) - 1].item() == pytest.approx(value, abs=1e-9)
    for row in expected.get("per_query", ()):
        i = row["query"]
        assert result.ap[i].item() == pytest.approx(row["ap"], abs=1e-9)
        assert result.inp[i].item() == pytest.approx(row["inp"], abs=1e-9)
        assert result.first_match[i].item() == row["first_match_rank"]
    for i in expected.get("invalid_queries", ()):
        assert result.first_match[i] == -1
        assert result.ap[i].isnan()
        assert result.inp[i].isnan()


def drawn(seed=0, num_query=9, num_gallery=70, dim=5, people=5, cameras=3, step=None):
    """A small random problem with junk; `step` rounds features to a lattice, so that distances tie.

    Without it, a third of the gallery are copies of other rows, some of them one float32 step off in one place.
    """
    rng = np.random.default_rng(seed)
    q, g = (rng.normal(size=(n, dim)).astype(np.float32) for n in (num_query, num_gallery))
    if step:
        q, g = np.round(q / step) * step, np.round(g / step) * step
    else:
        copies = rng.integers(0, num_gallery, (2, num_gallery // 3))
        g[copies[0]] = g[copies[1]]
        off = copies[0, ::2]
        g[off, 0] = np.nextafter(g[off, 0], np.float32(9))
    ids = [rng.integers(low, high, n) for low, high in ((0, people), (0, cameras)) for n in (num_query, num_gallery)]
    ids[1][rng.random(num_gallery) < 0.1] = -1
    return [q, g, ids[0], ids[1], ids[2], ids[3]]

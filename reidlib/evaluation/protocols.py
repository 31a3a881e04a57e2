"""Other scores of the same features: CUHK03's single shot, verification, camera pairs, intervals and a paired test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.errors import unknown_name
from reidlib.evaluation import kernels
from reidlib.evaluation.kernels import njit
from reidlib.evaluation.ranking import Pairs, RankingResult, evaluate_ranking, measure, rank_gallery, require_match
from reidlib.evaluation.spaces import (
    JUNK,
    STANDARD,
    Exclude,
    Feats,
    Gallery,
    Ids,
    OtherIds,
    Space,
    at_least_one,
    blocks,
    rows_of,
    scaled,
)


@dataclass(frozen=True, eq=False)
class SingleShot:
    """Expected scores over draws: cmc (max_rank,) float64; mAP is the mean of 1 / rank of the drawn right match."""

    cmc: Tensor
    mAP: float
    num_valid: int
    num_query: int


def single_shot(
    query_feats: Feats,
    gallery_feats: Gallery,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    repeats: int | None = None,
    seed: int = 0,
    max_rank: int = 50,
    metric: str = "cosine",
    device: torch.device | str | None = None,
    block_size: int | None = None,
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
) -> SingleShot:
    """CUHK03's first protocol: of each gallery identity one image is drawn for each query, after the usual removal.

    The published mAP under this protocol is often that of the full list (torchreid, fast-reid): `evaluate_ranking`
    gives it.

    Args:
        repeats: Draws to take the mean of. None: the exact expectation over all draws; what is ahead of a drawn right
            match is a sum of independent 0/1 variables, one for each identity.
        seed: Seed of the draws.

    All other arguments and the errors are those of `evaluate_ranking`.
    """
    at_least_one(repeats=repeats, max_rank=max_rank)
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, exclude=exclude, other_ids=other_ids)
    people, person = ids.gallery_pids.unique(return_inverse=True)
    queries, rng = rows_of(query_feats, "query_feats"), np.random.default_rng(seed)
    shares = np.zeros(max(len(people), max_rank))  # of each rank of the right match, summed over valid queries
    num_valid = 0
    for start in range(0, len(queries), 64):
        tile = slice(start, start + 64)
        of_tile = (queries[tile], gallery_feats, ids.query_pids[tile], ids.gallery_pids)
        of_tile += (ids.query_camids[tile], ids.gallery_camids)
        options = {"metric": metric, "device": device, "block_size": block_size} | ids.rules(tile)
        lists = rank_gallery(*of_tile, k=len(ids.gallery_pids), **options)
        for order, match in zip(lists.indices, lists.matches.numpy(), strict=True):
            order = order[order >= 0]
            match = match[: len(order)]
            if match.any():
                num_valid += 1
                if repeats is None:
                    _expect(person[order].numpy(), match, len(people), shares)
                else:
                    _draw(person[order].numpy(), match, repeats, rng, shares)
    require_match(np.array(num_valid), ids)
    shares /= num_valid
    cmc = torch.from_numpy(shares.cumsum()[:max_rank])
    return SingleShot(cmc, float((shares / np.arange(1, len(shares) + 1)).sum()), num_valid, len(queries))


@njit
def _expect(person, match, people, shares):  # noqa: ANN001, ANN202
    """Add the distribution of the drawn right match's rank for one ranked list."""
    size, seen, right = np.zeros(people), np.zeros(people), 0
    for n in range(len(person)):
        size[person[n]] += 1
        right += match[n]
    for n in range(len(person)):
        if not match[n]:
            seen[person[n]] += 1
            continue
        ahead, length = np.zeros(people + 1), 1  # ahead[a]: probability that a identities are ahead
        ahead[0] = 1.0
        for p in range(people):
            if seen[p] > 0:
                share = seen[p] / size[p]
                for a in range(length, 0, -1):
                    ahead[a] = ahead[a] * (1 - share) + ahead[a - 1] * share
                ahead[0] *= 1 - share
                length += 1
        for a in range(length):
            if ahead[a] > 0:
                shares[a] += ahead[a] / right


def _draw(person: np.ndarray, match: np.ndarray, repeats: int, rng: np.random.Generator, shares: np.ndarray) -> None:
    for _ in range(repeats):
        shuffled = rng.permutation(len(person))
        drawn = np.sort(shuffled[np.unique(person[shuffled], return_index=True)[1]])  # one image per person
        shares[np.flatnonzero(match[drawn])[0]] += 1 / repeats


@dataclass(frozen=True, eq=False)
class Verification:
    """How well a threshold on the distance tells whether two images show the same person.

    Attributes:
        tar: True accept rate, by false accept rate.
        threshold: The distance up to which a pair is accepted, by false accept rate; NaN: no genuine pair can be.
        auc: Area under the ROC curve.
        num_genuine: Pairs of one person.
        num_impostor: Pairs of two.
    """

    tar: dict[float, float]
    threshold: dict[float, float]
    auc: float
    num_genuine: int
    num_impostor: int


def verify(
    query_feats: Feats,
    gallery_feats: Gallery,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    fars: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1),
    metric: str = "cosine",
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
    across_cameras: bool = False,
    block_size: int = 1024,
    progress: bool = False,
) -> Verification:
    """Open set: the share of genuine pairs accepted (TAR) when at most floor(far x impostor pairs) impostors are (FAR).

    All query-gallery pairs count, except junk and pairs of one person under one camera. Distances are 1 - cosine or
    squared euclidean, the exact ones of `evaluate_ranking`. fast-reid prints another quantity under this name: there
    the impostor is the positive class, so it is the share of impostors rejected when so many genuine pairs are.

    Args:
        fars: False accept rates.
        across_cameras: Count impostor pairs of two cameras only, as it is with genuine ones. Two people under one
            camera share its background and look more alike.
        block_size: Rows of queries and of gallery in a tile (memory and speed only).

    All other arguments and the errors are those of `evaluate_ranking`.
    """
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, exclude=exclude, other_ids=other_ids)
    space = Space(query_feats, metric, "cpu", ids)
    pairs = Pairs.of(ids, space.device)
    measure(space, gallery_feats, ids, pairs, block_size)
    genuine = pairs.exact[pairs.kept].sort().values
    nearer, level = torch.zeros(2, len(genuine) + 1, dtype=torch.int64)  # impostors by the first genuine pair beyond
    for first, part in blocks(gallery_feats, block_size, ids, progress):
        block = space.block(first, part, ids)
        for start in range(0, space.num_query, block_size):
            tile = slice(start, start + block_size)
            distances = space.rows[tile].double() @ block.rows.double().T
            norms, far = space.norms[tile, None], kernels.root(block.squares)
            if space.cosine:
                distances, slack = 1 - distances / (norms * far), space.dim * 2.0**-50
            else:
                distances = norms.square() + block.squares - 2 * distances
                slack = space.dim * 2.0**-50 * (norms + far).square()
            # A matrix product rounds as the processor likes: what may be on either side of a genuine pair is decided
            # by its exact distance.
            low = torch.searchsorted(genuine, distances - slack)
            doubtful = torch.searchsorted(genuine, distances + slack, right=True) != low
            pid = space.pids[tile, None]
            impostor = (pid != block.pids) & (pid != JUNK) & (block.pids != JUNK)
            if across_cameras:
                impostor &= ids.query_camids[tile, None] != ids.gallery_camids[first : first + len(part)]
            query, item = (impostor & doubtful).nonzero(as_tuple=True)
            exact, low = space.exact(query + start, item, block), low[impostor & ~doubtful]
            for counts, right in ((nearer, True), (level, False)):
                places = torch.cat([low, torch.searchsorted(genuine, exact, right=right)])
                counts += torch.bincount(places, minlength=len(counts))
    num_genuine, num_impostor = len(genuine), int(nearer.sum())
    if not num_genuine or not num_impostor:
        raise ValueError(f"nothing to verify: {num_genuine} genuine and {num_impostor} impostor pairs")
    nearer, level = nearer.cumsum(0)[:-1], level.cumsum(0)[:-1]  # impostors below, and at most, each genuine distance
    genuine = genuine if space.cosine else scaled(scaled(genuine, space.exponent), space.exponent)
    tar, threshold = {}, {}
    for far in fars:
        accepted = int((level <= int(far * num_impostor)).sum())
        tar[far] = accepted / num_genuine
        threshold[far] = genuine[accepted - 1].item() if accepted else float("nan")
    auc = 1 - ((nearer + level).double().mean() / (2 * num_impostor)).item()
    return Verification(tar, threshold, auc, num_genuine, num_impostor)


def threshold_intervals(
    query_feats: Feats,
    gallery_feats: Feats,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    fars: tuple[float, ...] = (1e-3, 1e-2),
    level: float = 0.95,
    samples: int = 200,
    seed: int = 0,
    most_pairs: int = 1 << 26,
    block_size: int = 1024,
) -> dict[float, tuple[float, float]]:
    """Percentile intervals of the cosine distance up to which a share of impostor pairs of two cameras is accepted.

    Over draws of as many people with replacement: the pairs of one person are no independent observations, so that
    drawing pairs would give intervals that are far too narrow. A distractor (pid 0) is a person of its own.

    Args:
        fars: False accept rates, below 0.1.
        level: Confidence level.
        samples: Number of draws.
        seed: Seed of the draws.
        most_pairs: Of more query-gallery pairs only those of every n-th query are used.
        block_size: Queries at a time (memory and speed only).

    All other arguments are those of `evaluate_ranking`.

    Returns:
        Lower and upper end by false accept rate.
    """
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids)
    query, gallery = (normalize(rows_of(x, "feats").float()) for x in (query_feats, gallery_feats))
    kept = torch.arange(0, len(query), -(-len(query) * len(gallery) // most_pairs))
    own = torch.arange(len(kept) + len(gallery)) + 1 + int(max(ids.query_pids.max(), ids.gallery_pids.max()))
    pids = torch.cat([ids.query_pids[kept], ids.gallery_pids])
    _, person = torch.where(pids == 0, own, pids).unique(return_inverse=True)
    _, camera = torch.cat([ids.query_camids[kept], ids.gallery_camids]).unique(return_inverse=True)
    table = torch.zeros(2, int(person.max()) + 1, int(camera.max()) + 1, dtype=torch.float64)  # images of each
    side = (torch.arange(len(pids)) >= len(kept)).long()
    table.index_put_((side, person, camera), (pids != JUNK).double(), accumulate=True)
    (qp, gp), (qc, gc) = ((x[: len(kept)], x[len(kept) :]) for x in (person, camera))
    real = ids.gallery_pids != JUNK
    # Only the nearest impostor pairs matter. Where they begin is read off a sample: four times the largest rate.
    rng = np.random.default_rng(seed)
    i, j = (torch.from_numpy(rng.integers(0, n, 1 << 18)) for n in (len(kept), len(gallery)))
    sampled = (query[kept[i]] * gallery[j]).sum(1)
    floor = torch.quantile(sampled, max(0.0, 1 - 4 * max(fars)))
    tail: list[Tensor] = []
    for rows in torch.arange(len(kept)).split(block_size):
        scores = query[kept[rows]] @ gallery.T
        impostor = (qp[rows, None] != gp) & (qc[rows, None] != gc) & real & (ids.query_pids[kept[rows], None] != JUNK)
        q, item = (impostor & (scores >= floor)).nonzero(as_tuple=True)
        tail.append(torch.stack([scores[q, item].double(), qp[rows[q]].double(), gp[item].double()]))
    similarity, p, g = torch.cat(tail, 1)
    order = similarity.argsort(descending=True)
    similarity, p, g = similarity[order], p[order].long(), g[order].long()
    if not len(similarity):
        return {far: (float("nan"),) * 2 for far in fars}
    found = torch.zeros(samples, len(fars), dtype=torch.float64)
    drawn = rng.multinomial(table.shape[1], np.full(table.shape[1], 1 / table.shape[1]), size=samples)
    of_q, of_g = table
    for n, weight in enumerate(torch.from_numpy(drawn).double()):
        cams_q, cams_g, twice = weight @ of_q, weight @ of_g, weight.square()
        total = cams_q.sum() * cams_g.sum() - cams_q @ cams_g  # pairs of two cameras, then without those of one person
        total -= twice @ (of_q.sum(1) * of_g.sum(1) - (of_q * of_g).sum(1))
        accepted = (weight[p] * weight[g]).cumsum(0)
        at = torch.searchsorted(accepted, total * torch.tensor(fars, dtype=torch.float64), right=True)
        found[n] = similarity[at.clamp(max=len(similarity) - 1)]
    ends = torch.quantile(1 - found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
    return {far: (ends[0, i].item(), ends[1, i].item()) for i, far in enumerate(fars)}


@dataclass(frozen=True, eq=False)
class PairHistogram:
    """How similar pairs of images are. Cosine similarity in B equal bins.

    Attributes:
        edges: (B + 1,) float64, from -1 to 1.
        same: (B,) int64, pairs of one person under two cameras.
        different: (B,) int64, pairs of two people; distractors are people of their own.
    """

    edges: Tensor
    same: Tensor
    different: Tensor


def pair_histogram(
    query_feats: Feats,
    gallery_feats: Feats,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    bins: int = 400,
    block_size: int = 1024,
) -> PairHistogram:
    """Count query-gallery pairs by cosine similarity, for a figure; `verify` has exact thresholds.

    Args:
        bins: Of equal width, from -1 to 1. Similarities are float32 products: one on an edge may fall on either side.
        block_size: Queries at a time (memory and speed only).

    All other arguments are those of `evaluate_ranking`; junk and pairs of one person under one camera are left out.
    """
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids)
    query, gallery = (normalize(rows_of(x, "feats").float()) for x in (query_feats, gallery_feats))
    counts = torch.zeros(2, bins, dtype=torch.int64)
    for rows in torch.arange(len(query)).split(block_size):
        bin_of = ((query[rows] @ gallery.T + 1) * (bins / 2)).long().clamp_(0, bins - 1)
        same = ids.query_pids[rows, None] == ids.gallery_pids
        junk = (ids.gallery_pids == JUNK) | (ids.query_pids[rows, None] == JUNK)
        dropped = junk | (same & (ids.query_camids[rows, None] == ids.gallery_camids))
        for i, kept in enumerate((same & ~dropped, ~same & ~dropped)):
            counts[i] += torch.bincount(bin_of[kept], minlength=bins)
    return PairHistogram(torch.linspace(-1, 1, bins + 1, dtype=torch.float64), *counts)


@dataclass(frozen=True, eq=False)
class CameraPairs:
    """mAP of the queries of each camera in the gallery of each.

    Attributes:
        mAP: (Cq, Cg) float64, NaN where no query has a right match.
        num_valid: (Cq, Cg) int64, queries in each mean.
        query_camids: (Cq,) int64, the rows.
        gallery_camids: (Cg,) int64, the columns.
    """

    mAP: Tensor
    num_valid: Tensor
    query_camids: Tensor
    gallery_camids: Tensor


def evaluate_camera_pairs(
    query_feats: Feats,
    gallery_feats: Feats,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    metric: str = "cosine",
    device: torch.device | str | None = None,
    block_size: int | None = None,
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
) -> CameraPairs:
    """Score the queries of each camera in the gallery of each: one ranking per gallery camera.

    Arguments and errors are those of `evaluate_ranking`.
    """
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, exclude=exclude, other_ids=other_ids)
    gallery = rows_of(gallery_feats, "gallery_feats")
    options: dict[str, Any] = {"metric": metric, "device": device, "block_size": block_size}
    if len(gallery) != ids.rows:
        raise ValueError(f"gallery_feats has {len(gallery)} rows, gallery_pids has {ids.rows}")
    (rows, row), columns = ids.query_camids.unique(return_inverse=True), ids.gallery_camids.unique()
    mean = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
    valid = torch.zeros_like(mean, dtype=torch.int64)
    for c, camera in enumerate(columns):
        here = (ids.gallery_camids == camera).nonzero()[:, 0]
        of_camera = (ids.query_pids, ids.gallery_pids[here], ids.query_camids, ids.gallery_camids[here])
        rules = ids.rules(gallery=here)
        if Pairs.of(Ids(*of_camera, **rules), torch.device("cpu")).kept.any():
            ap = evaluate_ranking(query_feats, gallery[here.to(gallery.device)], *of_camera, **options | rules).ap
            for r in range(len(rows)):
                mine = ap[(row == r) & ~ap.isnan()]
                mean[r, c], valid[r, c] = mine.mean(), len(mine)  # the mean of none is NaN
    return CameraPairs(mean, valid, rows, columns)


def _per_query(result: RankingResult, measured: str) -> Tensor:
    """One value a query, NaN where it has no right match, whose mean is the named measure."""
    if measured in ("mAP", "mINP"):
        return result.ap if measured == "mAP" else result.inp
    if measured[:4] == "rank" and measured[4:].isdigit():
        hit = (result.first_match <= int(measured[4:])).double()
        return hit.masked_fill(result.first_match < 0, torch.nan)
    raise unknown_name("measure", measured, ("mAP", "mINP", "rank1", "rank5", "rank10"))


def bootstrap(
    result: RankingResult,
    measured: str = "mAP",
    *,
    against: RankingResult | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile confidence interval of a score, over draws of as many queries with replacement.

    It covers the choice of queries, not that of identities, galleries or trainings.

    Args:
        result: What was ranked.
        measured: "mAP", "mINP" or "rank<k>".
        against: Another ranking of the same queries in the same order: the interval is that of how much better `result`
            is, with the same draws of queries for both.
        level: Confidence level.
        samples: Number of draws.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: Another `measured`, or `against` is of other queries.
    """
    values = _per_query(result, measured)
    if against is not None:
        _check_paired(result, against)
        values = values - _per_query(against, measured)
    values = values[~values.isnan()].numpy()
    rng, even = np.random.default_rng(seed), np.full(len(values), 1 / len(values))
    means = [rng.multinomial(len(values), even) @ values / len(values) for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_paired(first: RankingResult, second: RankingResult) -> Tensor:
    """(Q,) bool: the queries with a right match, which must be the same in both."""
    if not torch.equal(valid := first.first_match > 0, second.first_match > 0):
        raise ValueError("the two results are not of the same queries: they cannot be paired")
    return valid


def permutation_test(
    first: RankingResult, second: RankingResult, measured: str = "mAP", *, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Paired permutation test of two rankings of the same queries.

    Under the null hypothesis each query's difference could as well have the other sign. Queries without a right match
    are left out, and must be the same in both.

    Args:
        first: A ranking.
        second: Another, of the same queries in the same order.
        measured: "mAP", "mINP" or "rank<k>".
        samples: Number of random sign patterns.
        seed: Their seed.

    Returns:
        How much better `second` is, and the two-sided p-value of that difference.

    Raises:
        ValueError: Results of other queries, another `measured`.
    """
    valid = _check_paired(first, second)
    difference = (_per_query(second, measured) - _per_query(first, measured))[valid].numpy()
    rng = np.random.default_rng(seed)
    observed = difference.mean()
    draws = (rng.choice((-1.0, 1.0), len(difference)) @ difference / len(difference) for _ in range(samples))
    # A hair's breadth of room, so that draws equal but for rounding count as equal.
    extreme = sum(abs(draw) >= abs(observed) - 1e-12 for draw in draws)
    return float(observed), float((1 + extreme) / (1 + samples))

"""Domain generalisation: protocols by name, the trainings that each asks for, and what was published under it.

A model is trained on some datasets and tested on one that it has never seen. P1 to P3 are those of CLIP-FGDI's table
(Zhao et al., 2024), which repeats earlier ones: P1 trains on all images of four datasets and is tested on four small
ones, each the mean of ten splits; P2 leaves one of four out; P3 does so with the sources' test images, too. M3L (Zhao
et al., CVPR 2021) leaves one out with DukeMTMC-reID in place of CUHK-SYSU. Boxes of CUHK03 are the detected ones.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from reidlib.errors import unknown_name
from reidlib.training import Job

if TYPE_CHECKING:
    import pandas as pd


class Round(NamedTuple):
    """One training: on the joined `sources`, tested on each of the `targets`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    combineall: bool = False  # train on query and gallery of the sources, too

    @property
    def name(self) -> str:
        """For folders and tables."""
        return f"{'+'.join(self.sources)} to {'+'.join(self.targets)}"


def leave_one_out(names: tuple[str, ...], *, combineall: bool = False, never: tuple[str, ...] = ()) -> list[Round]:
    """A round for each of `names`, tested on it and trained on the others; those of `never` are not tested on."""
    return [
        Round(tuple(n for n in names if n != target), (target,), combineall) for target in names if target not in never
    ]


_FOUR = ("market1501", "msmt17", "cuhk_sysu", "cuhk03-detected")
_SMALL = ("prid2011", "grid", "viper", "ilids")
PROTOCOLS: dict[str, list[Round]] = {
    **{
        f"drawn-{size}": leave_one_out(tuple(f"synthetic{b}-{size}" for b in ("", "_b", "_c")))
        for size in ("tiny", "small")
    },
    "p1": [Round(("market1501", "cuhk02", "cuhk03-detected", "cuhk_sysu"), _SMALL, True)],
    "p2": leave_one_out(_FOUR, never=("cuhk_sysu",)),
    "p3": leave_one_out(_FOUR, never=("cuhk_sysu",), combineall=True),
    "m3l": leave_one_out(("market1501", "dukemtmcreid", "cuhk03-detected", "msmt17")),
    "single": [
        Round(("market1501",), ("msmt17", "cuhk03-detected")),
        Round(("msmt17",), ("market1501",)),
        Round(("msmt17",), ("market1501",), True),
        Round(("randperson",), ("market1501",)),
    ],
}


def rounds(protocol: str) -> list[Round]:
    """The trainings of a protocol.

    Raises:
        ValueError: There is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


def jobs(protocol: str, run: str, params: Mapping[str, Any]) -> Iterator[tuple[Round, Job]]:
    """The training of each round, into the folder of that number below `run`.

    The last epoch is kept: the best on a target would have been chosen by what is to be measured.
    """
    from reidlib.data.layouts import with_splits

    for number, one in enumerate(rounds(protocol), 1):
        data = {
            "dataset": "+".join(one.sources),
            "combineall": one.combineall,
            "tested_on": with_splits(one.targets)[0],
        }
        yield one, Job.from_params({**params, **data, "run": f"{run}/{number}", "keep": "last"})


def published(protocol: str) -> "pd.DataFrame":
    """What was published under a protocol: a row each result, Rank-1 and mAP in percent."""
    import pandas as pd

    rounds(protocol)
    table = pd.read_csv(str(files("reidlib.models") / "printed" / "generalisation.csv"))
    return table[table.protocol == protocol].drop(columns="protocol").reset_index(drop=True)


def beside(protocol: str, own: Mapping[tuple[str, str], Mapping[str, float]], method: str) -> "pd.DataFrame":
    """Rank-1 / mAP in percent of one's own scores and of the published ones, a row each method, a column each target.

    Args:
        protocol: Its name.
        own: (joined sources, target) → scores as shares; the splits of one target are averaged.
        method: What to call one's own.
    """
    import pandas as pd

    found = [
        {"sources": sources, "target": target.partition("-split")[0], "method": method}
        | {score: 100 * row[score] for score in ("rank1", "mAP")}
        for (sources, target), row in own.items()
    ]
    mine = pd.DataFrame(found, columns=["sources", "target", "method", "rank1", "mAP"])
    mine = mine.groupby(["sources", "target", "method"], sort=False, as_index=False).mean()
    if protocol == "p1" and own:  # its published scores are means over the four targets
        total = mine.groupby(["sources", "method"], as_index=False)[["rank1", "mAP"]].mean().assign(target="mean")
        mine = pd.concat([mine, total])
    table = pd.concat([mine, published(protocol)], ignore_index=True)
    table["cell"] = [f"{r.rank1:.1f} / {r.mAP:.1f}" for r in table.itertuples()]
    table["to"] = table.target if protocol != "single" else table.sources + " to " + table.target
    wide = table.pivot_table(index="method", columns="to", values="cell", aggfunc="first", sort=False)
    return wide.fillna("")

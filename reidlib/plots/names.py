"""What a figure calls a person and a camera: by the user's own names, where the dataset has them."""

from collections.abc import Mapping
from typing import Protocol

_NOBODY = {-1: "junk", 0: "distractor"}


class Named(Protocol):
    """What knows the names, such as a ReIDDataset."""

    @property
    def people(self) -> Mapping[int, str]: ...

    @property
    def cameras(self) -> Mapping[int, str]: ...


def person_name(pid: int, dataset: Named | None = None, prefix: str = "") -> str:
    """Name a person.

    Args:
        pid: the person's number; -1 is junk, 0 a distractor.
        dataset: whose `people` maps pids to names; None where there are only numbers.
        prefix: put before a number, but not before a name.

    Returns:
        "junk", "distractor", the name, or the number.
    """
    return _NOBODY.get(pid) or (dataset.people if dataset else {}).get(pid, f"{prefix}{pid}")


def camera_name(camid: int, dataset: Named | None = None, prefix: str = "") -> str:
    """Name a camera: from the `cameras` of `dataset`, else its number behind `prefix`."""
    return (dataset.cameras if dataset else {}).get(camid, f"{prefix}{camid}")

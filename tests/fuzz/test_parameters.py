"""Texts of a command line and parameters of a training: a value of the declared type, or one sentence."""

import math

from hypothesis import given
from hypothesis import strategies as st

from reidlib.training import Job
from reidlib.training.job import SETTINGS
from reidlib.training.settings import read_text, typed

KINDS = [int, float, str, bool, list, list[int], tuple[int, ...], tuple[str, ...], dict, bool | None, int | None]
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="0123456789+-.eE:_xo,[]{} '\"&*!%#|>?@`truefalsnoN\n\t", max_size=30),
    st.sampled_from(
        ["010", "1:30", "0x1f", "1_000", "yes", "~", "[", "{a", "&a [*a]", "!!python/object:os.system", "٣"]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


REFUSED = object()


def attempt(make, *arguments: object) -> tuple[object, str]:
    """What `make` gives, or REFUSED and what it said."""
    try:
        return make(*arguments), ""
    except (ValueError, FileNotFoundError) as error:
        return REFUSED, str(error)


@given(TEXTS, st.sampled_from(KINDS))
def test_a_text_is_a_value_of_the_type_or_refused(text: str, kind: type) -> None:
    value, words = attempt(read_text, "p", text, kind)
    if value is REFUSED:
        assert "parameter 'p'" in words
        assert len(words) < 500
        return
    assert typed("p", value, kind) == value or (isinstance(value, float) and math.isnan(value))
    assert kind is not int or value == int(text)  # decimal, whatever YAML makes of it
    assert kind is not str or value == text


def is_a_job_or_refused(params: dict) -> None:
    job, words = attempt(Job.from_params, {"model": "osnet_x0_25", "recipe": "toy"} | params)
    if job is REFUSED:
        assert 0 < len(words) < 2000
    else:
        assert Job.from_params(job.params).params == job.params


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)) | st.text(max_size=8), VALUES, max_size=4))
def test_parameters_are_a_job_or_refused(params: dict) -> None:
    is_a_job_or_refused(params)


@given(st.sampled_from(sorted(SETTINGS)), VALUES)
def test_each_setting_alone_is_taken_or_refused(name: str, value: object) -> None:
    is_a_job_or_refused({"settings": {name: value}} if name not in ("model", "recipe") else {name: value})

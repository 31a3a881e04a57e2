"""How long the fuzz tests run: a few seconds each, the same examples every time; with REID_FUZZ_SECONDS, new examples
for that long, shared among all the tests that were chosen.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("REID_FUZZ_SECONDS") or 0)
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}

settings.register_profile("short", max_examples=60, derandomize=True, database=None, **COMMON)
settings.register_profile("long", max_examples=500, **COMMON)
settings.load_profile("long" if SECONDS else "short")

share = 0.0  # seconds of each test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    global share
    share = SECONDS / max(1, len(items))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Repeat a test, each time with new examples, until its share of the time is over."""
    end = time.monotonic() + share
    result = yield
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    while time.monotonic() < end:
        pyfuncitem.obj(**arguments)
    return result

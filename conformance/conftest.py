"""What every test of the suite shares: the implementation under test, hypothesis profiles, and the record of error over bound."""

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

if not torch.cuda.is_available() and os.environ.get("TWOFOLD_BACKEND") != "torch":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

from twofold.conformance import compare, target

_shared = {"deadline": None, "report_multiple_bugs": False, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("quick", max_examples=5, derandomize=True, database=None, **_shared)
settings.register_profile("dev", max_examples=20, **_shared)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **_shared)
settings.register_profile("gpu", max_examples=40, derandomize=True, database=None, **_shared)
settings.register_profile("nightly", max_examples=200, database=None, **_shared)
settings.register_profile(  # one failure is enough there: nobody reads the smallest example
    "museum", max_examples=20, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **_shared
)
settings.load_profile(os.environ.get("TWOFOLD_PROFILE", "dev"))


def pytest_sessionstart(session):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)  # one core per worker
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        from twofold.conformance import interpreter

        interpreter.install()
        interpreter.self_test()


def pytest_generate_tests(metafunc):
    if "fast" in metafunc.fixturenames:
        metafunc.parametrize("fast", target.backends(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def fast(request):
    """The implementation under test of the chapter that the test file's path names."""
    with target.implementation(target.chapter_of(request.path), request.param) as implementation:
        yield implementation


@pytest.fixture(scope="session")
def device():
    return target.device()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    compare.observed.clear()
    outcome = yield
    family = item.path.parent.name
    chapter = "suite" if family in ("suite", "conformance") else target.chapter_of(item.path)
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for (dtype, what), ratio in compare.observed.ratios.items():
        item.user_properties.append(("ratio", [chapter, f"{parameters.get('fast', 'spec')}/{dtype}", what, ratio]))
    compare.observed.demand_teeth()
    return outcome


def pytest_collection_modifyitems(items):
    for item in items:
        family = item.path.parent.name
        chapter = "suite" if family in ("suite", "conformance") else target.chapter_of(item.path)
        item.user_properties.append(("chapter", chapter))

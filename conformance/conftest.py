"""What every test of the suite shares: the implementation under test, hypothesis profiles, and the record of error over bound."""

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

if not torch.cuda.is_available() and os.environ.get("TWOFOLD_BACKEND") != "torch":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

from twofold.conformance import compare, target

_shared = settings(
    deadline=None, report_multiple_bugs=False, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("quick", _shared, max_examples=5, derandomize=True, database=None)
settings.register_profile("dev", _shared, max_examples=20)
settings.register_profile("ci", _shared, max_examples=10, derandomize=True, database=None)
settings.register_profile("gpu", _shared, max_examples=40, derandomize=True, database=None)
settings.register_profile("nightly", _shared, max_examples=200, database=None)
settings.register_profile(  # the examples of "ci" must be enough to see a bug; nobody reads the smallest one
    "museum", _shared, max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("TWOFOLD_PROFILE", "dev"))


def pytest_configure(config):  # not at session start, which a conftest that --pyargs finds comes too late for
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


@pytest.fixture
def one_thread():
    """A matrix product of the CPU's library is cut among its threads by the size of the whole batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    compare.observed.clear()
    try:
        outcome = yield
    finally:
        side = getattr(getattr(item, "callspec", None), "params", {}).get("fast", "spec")
        for (dtype, what), ratio in compare.observed.ratios.items():
            item.user_properties.append(("ratio", [_chapter(item), f"{side}/{dtype}", what, ratio]))
    compare.observed.demand_teeth()
    return outcome


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("chapter", _chapter(item)))
        if "fast" in item.fixturenames:
            item.user_properties.append(("implementation", item.callspec.params["fast"]))


def _chapter(item):
    """The chapter that the test's file is named after; the suite's tests of itself belong to none."""
    return "suite" if item.path.parent.name in ("suite", "conformance") else target.chapter_of(item.path)

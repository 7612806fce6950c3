import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))  # support, which tests of a wheel have not beside them

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if INTERPRETED else ["interpreted"]  # tests/triton_tools.py
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For models so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before `-m gpu` selects
def pytest_collection_modifyitems(items):
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("device") == "cuda":
            item.add_marker(pytest.mark.gpu)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_sessionstart(session):
    if is_whole(session.config):
        import support

        support.NOTE.unlink(missing_ok=True)


def pytest_sessionfinish(session, exitstatus):
    """Note under what all tests passed: docs/support.py claims nothing else."""
    if exitstatus == pytest.ExitCode.OK and is_whole(session.config):
        import support

        support.note()


def is_whole(config):
    """Whether all tests are run, and this is not one of several processes that do."""
    narrowing = "keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "collectonly"
    chosen = any(getattr(config.option, name, None) for name in narrowing)
    return not chosen and config.args_source == config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")

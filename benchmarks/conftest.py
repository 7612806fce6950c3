"""`pytest benchmarks`: the options, and the fixture `compare` that every bench file uses."""

import os
import sys
from functools import partial
from pathlib import Path

import harness
import pytest
import tables
from machine import describe
from rows import RESULTS, Results

MEASURED = pytest.StashKey[Results]()


def pytest_addoption(parser):
    group = parser.getgroup("toco_kernels")
    group.addoption("--compile", action="store_true", help="also compile the rivals; takes minutes")
    group.addoption("--results", type=Path, default=RESULTS, help="the folder to write <machine>.json to")


def pytest_report_header():
    return f"load average: {os.getloadavg()[0]:.1f} (numbers are worth keeping where nothing else runs)"


@pytest.fixture(scope="session")
def results(request):
    config = request.config
    config.stash[MEASURED] = Results(config.getoption("results"), describe())
    return config.stash[MEASURED]


@pytest.fixture
def compare(benchmark, results, request, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # processes that measure memory import the bench files
    compiled = request.config.getoption("compile")
    return partial(harness.compare, benchmark=benchmark, results=results, compiled=compiled)


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(MEASURED, None)
    if results and results.measured:
        terminalreporter.section(f"measured, and written to {results.file}")
        terminalreporter.write_line(tables.render(results.machine, results.commit, [*results.measured.values()]))

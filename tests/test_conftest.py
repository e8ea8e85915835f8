"""The tests' own settings: Hypothesis draws the same examples each time, but where a developer asks for others."""

import os
from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture
def hypothesis_profile(pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    return conftest.hypothesis_profile


@pytest.mark.parametrize(
    ("environ", "derandomize"),
    [
        ({}, True),
        ({"CI": "true"}, True),
        ({"LOSSMAP_RANDOM_TESTS": ""}, True),
        ({"LOSSMAP_RANDOM_TESTS": "1"}, False),
        ({"CI": "1", "LOSSMAP_RANDOM_TESTS": "1"}, True),
    ],
)
def test_examples_are_random_on_request_only(hypothesis_profile, environ, derandomize):
    assert settings.get_profile(hypothesis_profile(environ)).derandomize is derandomize


def test_this_run_has_the_profile_of_its_environment(hypothesis_profile):
    assert settings.default.derandomize is settings.get_profile(hypothesis_profile(os.environ)).derandomize

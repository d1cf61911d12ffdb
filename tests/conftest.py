"""Settings and fixtures of all tests."""

from pathlib import Path

import hypothesis
import pytest
from made import make_scene

from rsseglab.scenes import Scene

# Machines differ in speed: a test that is slow once is no failure.
hypothesis.settings.register_profile("rsseglab", deadline=None)
hypothesis.settings.load_profile("rsseglab")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)

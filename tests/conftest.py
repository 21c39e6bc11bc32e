"""Fixtures that every folder of tests shares."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import posttrain  # noqa: F401  (its torchvision guard has to come before any test imports transformers)

ROOT = Path(__file__).resolve().parent.parent

# On a machine that is slow, or pauses, an example that takes long is no failure.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside a development checkout; a user's clone has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real sample data (../shared/data) is not beside this checkout")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `--dist loadgroup`, the tests that start a vLLM engine share one worker: an engine takes every core."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("vllm") is not None:
                item.add_marker(pytest.mark.xdist_group("vllm"))

"""The page in a real browser: its script runs, the content policy lets it, and nothing is printed to the console."""

import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--dump-dom",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not loaded")


def load(page: Path, profile: Path) -> tuple[str, str]:
    """The document after its script ran, and what the browser logged."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_the_page_loads_without_a_console_message(run_folder: Path, tmp_path: Path) -> None:
    document, log = load(write_report(run_folder), tmp_path / "profile")
    assert '<html lang="en" class="js">' in document  # set by the script
    assert 'class="tip"' in document
    assert "CONSOLE" not in log, log


def test_a_fault_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "fault.html"
    page.write_text("<script>undefinedName()</script>")
    assert "CONSOLE" in load(page, tmp_path / "profile")[1]

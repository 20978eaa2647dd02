# SPDX-License-Identifier: Apache-2.0
"""A real installation: ``pip install .`` into an empty environment, used from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.tools import ROOT, is_ci

LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "__pycache__", ".*_cache", "*.so", "results"
)
UNREACHABLE = re.compile(r"No matching distribution|Could not find a version|[Cc]onnection|Name or service")
INSTALL_TIMEOUT_S = 280


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the package and nothing else of ours."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_BEHIND)
    environment = folder / "env"
    venv = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(venv, check=True, timeout=INSTALL_TIMEOUT_S)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install"]
    done = subprocess.run(
        [*pip, "--quiet", "--no-input", "--no-compile", "."],
        cwd=source,
        env=dict(os.environ, CFLAGS="-O0"),  # what is in the package matters here, not how fast it is
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    if done.returncode and UNREACHABLE.search(done.stderr) and not is_ci():
        pytest.skip("needs a package index for pip")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)  # an installation that looks back at its source would break now
    return environment / "bin"


def run(*argv: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """In another folder and with an environment that knows nothing of the checkout."""
    return subprocess.run(
        argv, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60
    )


def test_installed_replctl_from_another_folder_tells_its_version(installation: Path, tmp_path: Path) -> None:
    version = re.escape(subprocess.check_output([ROOT / "tools/sources.py", "--version"], text=True).strip())
    done = run(installation / "replctl", "--version", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\b{version}\b", done.stdout)


def test_installed_repld_asked_for_help_tells_its_usage(installation: Path, tmp_path: Path) -> None:
    done = run(installation / "repld", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_installed_packages_include_the_engine_and_no_test_module(installation: Path, tmp_path: Path) -> None:
    script = (
        "import nbd, repl, repl.engine._engine as engine, repl.files._brick; "
        "assert engine.lib.RE_VOLUMES_MAX == 64; print(nbd.__file__, repl.__file__, engine.__file__)"
    )
    done = run(installation / "python", "-c", script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(str(installation.parent) in path for path in done.stdout.split())
    assert run(installation / "python", "-c", "import _repl_sim", folder=tmp_path).returncode == 1

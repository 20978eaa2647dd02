# SPDX-License-Identifier: Apache-2.0
"""tools/tidy.py finds what it claims to find."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.lib.tools import ROOT


@pytest.fixture(scope="module")
def tidy() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("tidy", ROOT / "tools/tidy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_tidy_line_of_121_columns_is_an_error(tidy: ModuleType) -> None:
    assert list(tidy.check_columns(["x" * 120])) == []
    assert len(list(tidy.check_columns(["x" * 121]))) == 1
    assert len(list(tidy.check_columns(["\t" * 30 + "x"]))) == 1


def test_tidy_include_of_a_higher_layer_is_an_error(tidy: ModuleType) -> None:
    low = ROOT / "csrc/base/made_up.c"
    high = ROOT / "csrc/engine/made_up.c"
    assert len(list(tidy.check_c_layers(low, ['#include "io/io.h"']))) == 1
    assert list(tidy.check_c_layers(high, ['#include "io/io.h"', '#include "repl_engine.h"'])) == []
    assert len(list(tidy.check_c_layers(high, ['#include "no_such_header.h"']))) == 1


def test_tidy_import_of_a_higher_layer_is_an_error(tidy: ModuleType) -> None:
    tree = ast.parse("from repl.daemon.main import main")
    assert len(list(tidy.check_python_layers("repl/node/model.py", tree))) == 1
    assert list(tidy.check_python_layers("repl/cli/main.py", tree)) == []
    assert len(list(tidy.check_python_layers("nbd/server.py", tree))) == 1


@pytest.mark.parametrize(
    "text", ["time.monotonic()", "random.randint(1, 2)", "from random import choice", "os.urandom(8)"]
)
def test_tidy_time_and_chance_in_decisions_are_errors(tidy: ModuleType, text: str) -> None:
    assert len(list(tidy.check_clock("repl/node/model.py", ast.parse(text)))) == 1
    assert list(tidy.check_clock("repl/daemon/main.py", ast.parse(text))) == []


def test_tidy_random_instance_passed_in_is_fine(tidy: ModuleType) -> None:
    tree = ast.parse("import random\ndef f(source: random.Random) -> int: return source.randint(1, 2)")
    assert list(tidy.check_clock("repl/node/model.py", tree)) == []


def test_tidy_unfinished_mark_needs_an_issue_number(tidy: ModuleType) -> None:
    mark = "TO" + "DO"
    assert len(list(tidy.check_unfinished([f"# {mark}: later"]))) == 1
    assert list(tidy.check_unfinished([f"# {mark}(#12): later"])) == []


def test_tidy_private_path_is_an_error(tidy: ModuleType) -> None:
    assert len(list(tidy.check_words(["see /wo" + "rk/x"]))) == 1
    assert list(tidy.check_words(["repl/wo" + "rk/x"])) == []

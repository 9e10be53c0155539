"""Mutations of a small tree, and whether the lines of the real list still exist."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import mutate
from mutate import Mutation, find_killer, read_mutations

ROOT = Path(__file__).parents[2]
FILE = "packages/small/src/small/numbers.py"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one function, and two tests of it, one of them slow."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half a second for each run of pytest, not five
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text("def double(x):\n    bigger = 2 * x\n    return bigger\n")
    (tmp_path / "tests" / "small").mkdir(parents=True)
    (tmp_path / "tests" / "small" / "test_numbers.py").write_text(
        "import pytest\nfrom small.numbers import double\n\n\n"
        "def test_of_two():\n    assert double(2) == 4\n\n\n"
        "@pytest.mark.slow\ndef test_of_three():\n    assert double(3) == 6\n"
    )
    (tmp_path / "tests" / "small" / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow: slow"]\n')
    return tmp_path


def test_the_first_fast_test_that_fails_is_named_and_the_line_is_restored(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else bytecode of the broken line would stay
    broken = Mutation(FILE, "bigger = 2 * x", "bigger = 3 * x", ["tests/small/test_nothing.py"])
    before = (tree / FILE).read_text()
    assert find_killer(tree, broken, broken.tests) == "tests/small/test_numbers.py::test_of_two"
    assert (tree / FILE).read_text() == before
    survivor = Mutation(FILE, "bigger = 2 * x", "bigger = x**2", ["tests/small/test_numbers.py"])
    assert find_killer(tree, survivor, survivor.tests) is None, "only the slow one would fail"


def test_a_test_that_fails_anyway_does_not_count(tree: Path) -> None:
    (tree / "tests" / "small" / "test_nothing.py").write_text("def test_nothing():\n    assert False\n")
    broken = Mutation(FILE, "bigger = 2 * x", "bigger = 3 * x", ["tests/small/test_nothing.py"])
    with pytest.raises(ValueError, match=r"test_nothing also fails without 'bigger = 3 \* x' in .*numbers.py"):
        find_killer(tree, broken, broken.tests)


def test_tests_that_cannot_run_end_in_one_sentence(tree: Path) -> None:
    broken = Mutation(FILE, "bigger = 2 * x", "bigger = 3 * x", [])
    with pytest.raises(ValueError, match="pytest ended with 4: "):
        find_killer(tree, broken, ["tests/small/test_absent.py"])


@pytest.mark.parametrize("mutation", read_mutations(ROOT / "tools" / "mutations.toml"), ids=lambda m: m.new)
def test_each_line_of_the_list_occurs_once_in_its_file_and_its_tests_exist(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutate.mutate(text, mutation) != text
    assert mutation.tests and all((ROOT / test).exists() for test in mutation.tests)


def test_a_line_that_does_not_occur_exactly_once_is_refused() -> None:
    with pytest.raises(ValueError, match=r"numbers.py has the line 'a = 1' 2 times, expected it once"):
        mutate.mutate("a = 1\nif b:\n    a = 1\n", Mutation(FILE, "a = 1", "a = 2", []))


@pytest.mark.parametrize("text", ["a.png", "", "[[mutation]]\nline = 3"])
def test_a_file_of_something_else_is_not_a_list_of_mutations(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=r"x\.toml is not a list of mutations: "):
        read_mutations(tmp_path / "x.toml")

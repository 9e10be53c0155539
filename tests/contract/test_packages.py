"""Rules between the packages: who imports whom, namespace, version ranges."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(folder.name for folder in (ROOT / "packages").iterdir() if (folder / "pyproject.toml").exists())


def project(package: str) -> dict:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / "packages" / package / "src").rglob("*.py"))


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_stillroom_is_a_namespace_package() -> None:
    assert [str(file) for file in (ROOT / "packages").glob("*/src/stillroom/__init__.py")] == []


def declared_packages(package: str) -> set[str]:
    """Packages of ours that a package depends on."""
    names = {Requirement(text).name for text in project(package)["dependencies"]}
    return {name.removeprefix("stillroom-") for name in names if name.startswith("stillroom-")}


@pytest.mark.parametrize("package", PACKAGES)
def test_tasks_depend_on_shared_packages_only_and_those_on_the_ones_below(package: str) -> None:
    below = {"backbone": set(), "convert": {"backbone"}, "runs": {"backbone"}}
    below |= {name: {"backbone", "runs"} for name in ("images", "finetune")}
    assert declared_packages(package) <= below.get(package, below.keys())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_no_package_of_ours_but_those_it_declares(package: str) -> None:
    allowed = {*declared_packages(package), package}
    for file in sources(package):
        ours = {name.split(".")[1] for name in imported_modules(file) if name.startswith("stillroom.")}
        assert ours <= allowed, f"{file} imports {ours - allowed}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tests_of_a_package_need_no_package_of_ours_but_those_it_declares(package: str) -> None:
    for file in (ROOT / "tests" / package).rglob("*.py"):
        ours = {name.split(".")[1] for name in imported_modules(file) if name.startswith("stillroom.")}
        allowed = {*declared_packages(package), package}
        assert ours <= allowed, f"{file} imports {ours - allowed}"


@pytest.mark.parametrize("package", PACKAGES)
def test_only_command_lines_and_settings_import_tyro(package: str) -> None:
    users = {file.name for file in sources(package) if any(n.split(".")[0] == "tyro" for n in imported_modules(file))}
    assert users <= {"cli.py", "command.py", "config.py", "auto_config.py", "nets.py"}


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "backbone"])
def test_the_version_ranges_of_our_packages_hold(package: str) -> None:
    requirements = [Requirement(text) for text in project(package)["dependencies"]]
    ours = [requirement for requirement in requirements if requirement.name.startswith("stillroom-")]
    assert "stillroom-backbone" in [requirement.name for requirement in ours]
    for requirement in ours:
        assert requirement.specifier.contains(project(requirement.name.removeprefix("stillroom-"))["version"])
        assert any(bound.operator == "<" for bound in requirement.specifier), "a range has an upper bound"


@pytest.mark.parametrize("package", PACKAGES)
def test_third_party_requirements_are_lower_bounds_only(package: str) -> None:
    for text in project(package)["dependencies"]:
        requirement = Requirement(text)
        if not requirement.name.startswith("stillroom-"):
            assert [bound.operator for bound in requirement.specifier] == [">="], text


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_what_it_imports(package: str) -> None:
    import sys

    extras = project(package).get("optional-dependencies", {}).values()
    texts = [*project(package)["dependencies"], *(text for extra in extras for text in extra)]
    declared = {Requirement(text).name.lower() for text in texts}
    names = {
        "pil": "pillow",
        "huggingface_hub": "huggingface-hub",
        "sklearn": "scikit-learn",
        "cv2": "opencv-python",
        "mmcv": "onedl-mmcv",
        "mmengine": "onedl-mmengine",
        "mmseg": "onedl-mmsegmentation",
        "lazy_loader": "lazy-loader",
    }
    with_detectron2 = {"detectron2", "fvcore", "omegaconf"}  # not in a package index; installs the other two
    for file in sources(package):
        for name in imported_modules(file):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "stillroom":
                continue
            if file.parent.name == "detectron2" and top in with_detectron2:
                continue
            assert names.get(top.lower(), top.lower()) in declared, f"{file} imports {top}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_version_readme_changelog_and_owner(package: str) -> None:
    folder = ROOT / "packages" / package
    assert f"## {project(package)['version']}" in (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# stillroom-")
    assert f"/packages/{package}/" in (ROOT / "CODEOWNERS").read_text(encoding="utf-8")

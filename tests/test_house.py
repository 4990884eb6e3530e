"""The architecture, enforced: layers, sizes, one method a file, light imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "platform" / "trimtab"
FILES = sorted(HOUSE.rglob("*.py"))
LAYERS = [
    {"errors", "progress", "environment", "run_log", "versions", "spec", "lm", "ranges", "sharing"},
    {"methods", "metrics", "policy_metrics"},
    {"parts", "alignment", "debating", "compute"},
    {"data", "models", "training", "stages"},
    {"run"},
    {"pipelines"},
    {"mistakes", "load"},
    {"search", "serving"},
    {"cluster", "tracked"},
    {
        "verbs",
        "stage_board",
        "display",
        "search_display",
        "search_ending",
        "endings",
        "printing",
        "cli",
        "cli_submit",
        "__main__",
    },
]
INSIDE_STAGES = ["data", "models", "training", "stages"]
OUTSIDE = {
    "methods": {"torch", "pydantic"},
    "metrics": {"numpy"},
    "policy_metrics": {"numpy"},
    "pipelines": {"pydantic"},
    "parts": {"pydantic"},
    "alignment": {"pydantic"},
    "debating": {"pydantic"},
    "compute": {"pydantic"},
    "spec": {"pydantic"},
    "search": {"pydantic", "optuna", "ray", "plotly", "yaml", "rich", "jinja2", "markupsafe", "numpy"},
    "cluster": {"ray", "requests", "aiohttp"},
    "serving": {
        *("pydantic", "fastapi", "starlette", "ray", "prometheus_client"),
        *("torch", "tokenizers", "transformers", "jinja2", "httpx2"),
    },
}
HEAVY = {"transformers", "trl", "deepspeed", "mlflow", "peft", "datasets", "accelerate"}
FAMILIES = [
    "trimtab.methods.objectives",
    "trimtab.methods.preferences",
    "trimtab.methods.rewards",
    "trimtab.methods.guides",
    "trimtab.methods.searches",
    "trimtab.methods.debates",
    "trimtab.methods.panels",
    "trimtab.pipelines",
]


def ids(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "trimtab"


def own_package(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def layer_of(package: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if package in names)


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    """Modules imported, those only for type checking left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)):
            yield from imports(node, top_level=top_level)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_point_down(path: Path) -> None:
    own = own_package(path)
    if own == "__init__":
        return
    for module in imports(ast.parse(path.read_text())):
        if not module.startswith("trimtab"):
            continue
        other = package_of(module)
        if own in INSIDE_STAGES and other in INSIDE_STAGES:
            assert INSIDE_STAGES.index(other) <= INSIDE_STAGES.index(own), f"{module} from {own}"
        elif other not in (own, "trimtab") and module != "trimtab.stages._base":
            assert layer_of(other) <= layer_of(own), f"{module} from {own}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_outside_libraries_stay_where_they_belong(path: Path) -> None:
    own = own_package(path)
    outside = {m.split(".")[0] for m in imports(ast.parse(path.read_text()))} - {"trimtab", "__future__"}
    outside -= sys.stdlib_module_names
    assert outside <= OUTSIDE.get(own, outside)
    if own != "run":
        assert "mlflow" not in outside
    if own not in ("training", "run", "serving", "search", "cluster"):
        assert "ray" not in outside


@pytest.mark.parametrize("path", [p for p in FILES if own_package(p) != "training"], ids=ids)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    top = {m.split(".")[0] for m in imports(ast.parse(path.read_text()), top_level=True)}
    allowed = {"transformers"} if ids(path) == "models/probe.py" else set()
    assert not (top & HEAVY) - allowed


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            given = [a for a in node.args.args if a.arg not in ("self", "cls")]
            assert len(given) <= 5, f"{node.name}: {len(given)} positional parameters"
            assert all(a.annotation for a in given + node.args.kwonlyargs), f"{node.name}: annotate every parameter"


def test_most_files_are_short() -> None:
    assert [ids(p) for p in FILES if p.read_text().count("\n") > 250] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_is_one_file_with_one_class_named_like_it(family: str) -> None:
    from trimtab.spec import methods_in

    found = methods_in(family)
    files = {p.stem for p in (HOUSE / Path(*family.split(".")[1:])).glob("*.py") if not p.stem.startswith("_")}
    assert set(found) == files
    for name, cls in found.items():
        assert cls.model_fields["kind"].default == name
        assert cls.__name__.lower() == name.replace("_", "")
        assert cls.__doc__
        module = sys.modules[cls.__module__]
        assert module.__doc__
        assert "20" in module.__doc__.splitlines()[0], f"{name}: cite the paper and its year in the first line"


def test_platform_is_not_a_package() -> None:
    assert not (HOUSE.parent / "__init__.py").exists()
    assert [p for p in HOUSE.rglob("__init__.py") if p.parent != HOUSE and p.read_text()] == []


def test_only_one_folder_overrides_trainers() -> None:
    places = {
        path.parent.relative_to(HOUSE)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(getattr(b, "id", "").endswith("Trainer") for b in node.bases)
    }
    assert places == {Path("training/trainers")}

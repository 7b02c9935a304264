"""Who may import whom; see docs/architecture.md. Imports inside functions count, those for type checkers do not."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dgm_tb

PACKAGE = Path(dgm_tb.__file__).parent
SCHEMA = {f"dgm_tb{name}" for name in ("", ".errors", ".framing", ".graph", ".records", ".resync", ".segment_names")}
TORCH = {"torch", "lightning", "pytorch_lightning"}
ARRAY_LIBRARIES = {"numpy": "numpy", "scipy": "numpy", "sklearn": "numpy", "torch": "torch"}

# Part of the package -> parts of it that it may import besides itself. A part is a folder, or a module of the top.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "framing": set(),
    "resync": {"framing"},
    "segment_names": set(),
    "records": {"errors"},
    "graph": {"errors"},
    "algorithms": {"errors"},
    "callback": {"errors", "framing", "graph", "records", "resync", "segment_names", "algorithms", ""},
    "plugin": {"errors", "framing", "graph", "records", "resync", "segment_names", "algorithms", ""},
    "demo": {"callback", "records"},
    "cli": {"errors", "records", "plugin", "demo", ""},
    "__main__": {"cli"},
    "": {"callback", "plugin"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """``dgm_tb.plugin.run`` -> ``plugin``; the package itself -> ``""``."""
    return module.split(".")[1] if "." in module else ""


def module_name(file: Path) -> str:
    names = [PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def is_module(name: str) -> bool:
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or place.is_dir()


def imports_of(file: Path) -> set[str]:
    """Full names of all modules that a file imports when it runs."""
    found: set[str] = set()
    for node in running_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are absolute"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {name if base.startswith("dgm_tb") and is_module(name) else base for name in names}
    return found


def running_nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    nodes: list[ast.AST] = [tree]
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            nodes += [node for branch in child.orelse for node in running_nodes(branch)]
        else:
            nodes += running_nodes(child)
    return nodes


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_imports_only_parts_before_it(file: Path) -> None:
    own = part(module_name(file))
    theirs = {part(name) for name in imports_of(file) if name.split(".")[0] == "dgm_tb"}

    assert theirs - {own} <= MAY_IMPORT[own]


@pytest.mark.parametrize("file", [f for f in FILES if part(module_name(f)) == "algorithms"], ids=module_name)
def test_an_algorithm_uses_one_array_library(file: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(file)}

    assert len({ARRAY_LIBRARIES[root] for root in roots if root in ARRAY_LIBRARIES}) <= 1
    assert not roots & {"lightning", "tensorboard"}


@pytest.mark.parametrize("name", sorted(SCHEMA | {"dgm_tb.cli", "dgm_tb.demo"}))
def test_the_schema_and_the_command_name_no_torch(name: str) -> None:
    place = PACKAGE.parent.joinpath(*name.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")

    assert not {imported.split(".")[0] for imported in imports_of(file)} & TORCH


PLUGIN_MODULES = [module_name(f) for f in FILES if part(module_name(f)) == "plugin"]


@pytest.mark.parametrize("names", [["dgm_tb"], PLUGIN_MODULES, ["dgm_tb.cli", "dgm_tb.demo"]], ids=lambda n: n[0])
def test_reading_loads_neither_torch_nor_lightning(names: list[str]) -> None:
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert not set(json.loads(output)) & TORCH


def test_the_loader_is_light_until_tensorboard_asks_for_the_plugin() -> None:
    script = "import sys, dgm_tb.plugin.loader; print('numpy' in sys.modules, 'sklearn' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.split() == ["False", "False"]

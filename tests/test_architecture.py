"""The imports of the package: arrows point down, and heavy packages have one door each."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "hvd_async"

# From top to bottom. A module may import modules on lower lines; neighbours on a line do not import each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"report", "script"},
    {"comparison", "simulation", "replay", "training", "benchmarks", "doctor", "project", "jobs"},
    {"strategies", "runs", "launcher"},
    {"store"},
    {"transport"},
    {"emulation", "cluster", "tasks"},
    {"config", "vectors"},
    {"system"},
    {"errors"},
)
# Stricter than the layers: the only other modules that these may import.
ONLY = {
    "comparison": {"config", "emulation", "errors", "runs", "system", "tasks"},
    "emulation": {"config", "errors", "system"},
    "vectors": set(),
    "runs": {"cluster", "config", "errors", "store", "system", "tasks", "vectors"},
    "strategies": {"cluster", "config", "errors", "store", "system", "transport", "vectors"},  # no tasks
    "store": {"cluster", "config", "errors", "system", "transport", "vectors"},  # no tasks
    "store.parameter_store": {"config", "store", "vectors"},  # arithmetic on gradients needs no transport
    "store.schedule": {"config"},
    "store.staleness": {"config"},
    "store.shards.shard": {"config", "store", "vectors"},
    "store.pushed_gradient": {"vectors"},
    "store.ledger": set(),
}
# Folders that only the listed modules may import.
DOOR_KEEPERS = {"tasks.translation": ("tasks.translation", "tasks.registry", "cli", "benchmarks")}
DOORS = {
    "mpi4py": ("transport",),
    "horovod": ("strategies.horovod",),
    "sentencepiece": ("tasks.translation.vocabulary",),
    "triton": ("vectors.cuda",),
    "yaml": ("config.yaml",),
    "wandb": ("runs.trackers",),
    "mlflow": ("runs.trackers",),
    "ctranslate2": ("tasks.translation.ctranslate2_model",),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the name of each module below the package (`store.client`; "" for the package itself), and its syntax tree."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.Module) -> set[str]:
    """Return the full names of all imports in `tree`, including those inside functions and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            # `from package import module` names a module in its second half.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(tree: ast.Module) -> set[str]:
    """Return the first names below the package that `tree` imports: `store`, `errors`, ..."""
    names = {name.split(".")[1] for name in imports(tree) if name.split(".")[0] == PACKAGE and name != PACKAGE}
    return {name for name in names if not name.startswith("__")}  # `__version__` is not a module


def layer_of(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name.partition(".")[0] in layer)


MODULES = dict(modules())


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_every_module_has_a_layer(name: str) -> None:
    assert sum(name.partition(".")[0] in layer for layer in LAYERS) == 1


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_arrows_point_down(name: str) -> None:
    own = name.partition(".")[0]
    upward = {other for other in own_imports(MODULES[name]) - {own} if layer_of(other) <= layer_of(own)}
    assert not upward, f"{name} imports {upward}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_narrow_modules_stay_narrow(name: str) -> None:
    own = name.partition(".")[0]
    for rule in {name, own} & ONLY.keys():
        beside = {own} if rule == own else set()
        assert own_imports(MODULES[name]) <= ONLY[rule] | beside


def test_inside_the_store_arithmetic_imports_no_communication() -> None:
    for name in ("parameter_store", "schedule", "staleness", "shards.shard", "pushed_gradient", "ledger"):
        known = imports(MODULES[f"store.{name}"])
        assert not any(f".{other}" in one for one in known for other in ("store.serve", "store.wire", "transport"))


@pytest.mark.parametrize("folder", sorted(DOOR_KEEPERS))
def test_a_guarded_folder_is_imported_only_by_its_door_keepers(folder: str) -> None:
    importers = {name for name, tree in MODULES.items() if any(f"{PACKAGE}.{folder}." in f"{one}." for one in imports(tree))}
    allowed = tuple(f"{name}." for name in DOOR_KEEPERS[folder])
    assert importers and not {name for name in importers if not f"{name}.".startswith(allowed)}


@pytest.mark.parametrize("package", sorted(DOORS))
def test_a_heavy_package_has_one_door(package: str) -> None:
    importers = {name for name, tree in MODULES.items() if any(one.split(".")[0] == package for one in imports(tree))}
    assert importers, "no module imports the package; remove its rule"
    outside = {name for name in importers if not any(f"{name}.".startswith(f"{door}.") for door in DOORS[package])}
    assert not outside


@pytest.mark.parametrize(
    "module",
    [
        "hvd_async",
        "hvd_async.cli",
        "hvd_async.tasks.translation",
        "hvd_async.config",
        "hvd_async.launcher",
        "hvd_async.store",
        "hvd_async.tasks.registry",
        "hvd_async.training.stop_request",
    ],
)
def test_the_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'mpi4py', 'horovod', 'sentencepiece'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == []


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_the_shapes_of_a_model_are_those_of_the_model_and_do_not_load_torchs_compiler(kind: str) -> None:
    """The compiler would take more than a second of every rank's start."""
    code = f"""
import sys, torch
from hvd_async.config import ModelConfig
from hvd_async.tasks.translation.architectures import build_model, shapes_of_model

config = ModelConfig(kind={kind!r}, width=8)
shapes, model = shapes_of_model(config, 11), build_model(config, 11)
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
for name, tensor in shapes.state_dict().items():
    assert tensor.device.type == "meta" and tensor.shape == model.state_dict()[name].shape, name
assert sum(1 for _ in shapes.buffers()) == sum(1 for _ in model.buffers())
assert [each.shape for each in shapes.buffers()] == [each.shape for each in model.buffers()]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


# --- Size and names. --------------------------------------------------------------------------------------------------

_MOST_LINES_OF_A_FILE = 450
_MOST_LINES_OF_A_FUNCTION = 60
_MOST_PARAMETERS = 6
# A kernel with a parameter for every number, and constructors whose parameters are shared objects.
_LONG = {"vectors.cuda._pass"}
_WIDE = {
    "vectors.cuda._pass",
    "store.shards.shard.Shard.__init__",
    "store.shards.shard_server.ShardServer.__init__",
    "tasks.dataset.DatasetTask.__init__",
    "script.run.ScriptRun.prepare",
}


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield all functions and methods in `tree`, with their full names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield f"{prefix}.{node.name}", node
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from functions(node, f"{prefix}.{node.name}")


def num_parameters(function: ast.FunctionDef) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_and_files_stay_small() -> None:
    found = {name: node for module, tree in MODULES.items() for name, node in functions(tree, module)}
    assert {name for name, node in found.items() if num_parameters(node) > _MOST_PARAMETERS} == _WIDE
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in found.items()}
    assert {name for name, length in lengths.items() if length > _MOST_LINES_OF_A_FUNCTION} == _LONG
    assert sum(lengths.values()) / len(lengths) <= 9.0
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert not {path for path, length in files.items() if length > _MOST_LINES_OF_A_FILE}


def test_no_two_classes_have_the_same_name() -> None:
    tests = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")]
    trees = [*MODULES.values(), *tests]
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not {name for name in names if names.count(name) > 1}


def test_imports_have_no_cycles() -> None:
    known = {
        name: {other for one in imports(tree) for other in _modules_of(one.removeprefix(f"{PACKAGE}."))} - {name}
        for name, tree in MODULES.items()
    }
    free: set[str] = set()
    while ready := {name for name in known.keys() - free if known[name] <= free}:
        free |= ready
    assert not known.keys() - free, f"in a cycle, or above one: {sorted(known.keys() - free)}"


def _modules_of(name: str) -> set[str]:
    """Return the module to which an import of `name` (a module, or a name in one) leads, packages included."""
    parent = name.rpartition(".")[0]
    return {name} if name in MODULES and name else {parent} & (MODULES.keys() - {""})


def test_every_name_that_is_imported_from_the_project_exists() -> None:
    """Programs of slow tests are not loaded by the others, so a renamed class would be noticed late."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    trees = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in files}
    missing = []
    for importer, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in (PACKAGE, "tests"):
                found = trees.get(node.module) or trees.get(f"{node.module}.__init__")
                names = set() if found is None else _top_level_names(found)
                for alias in node.names:
                    below = f"{node.module}.{alias.name}"
                    if alias.name not in names and below not in trees and f"{below}.__init__" not in trees:
                        missing.append(f"{importer}: {below}")
    assert [name for name in missing if "._native" not in name] == []


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
    return names

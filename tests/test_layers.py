"""Each floor imports only floors below it (the floor plan is in docs/CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# floor of each module or package, ground floor first; the longest matching name counts
FLOORS = [
    {"hoi_lightning", "hoi_lightning.errors", "hoi_lightning.provenance", "hoi_lightning.weights"},
    {
        "hoi_lightning.diffusion",
        "hoi_lightning.hand_proxy",
        "hoi_lightning.holes",
        "hoi_lightning.guidance",
        "hoi_lightning.window",
        "hoi_lightning.wishes",
        "hoi_lightning.grid",
    },
    {
        "hoi_lightning.metrics",
        "hoi_lightning.networks",
        "hoi_lightning.data",
        "hoi_lightning.data.sample",
        "hoi_lightning.data.reader",
        "hoi_lightning.data.augment",
    },
    {"hoi_lightning.tasks", "hoi_lightning.callbacks", "hoi_lightning.data.datamodule"},
    {"hoi_lightning.pipeline", "hoi_lightning.painters", "hoi_lightning.export"},
    {
        "hoi_lightning.bench",
        "hoi_lightning.cli",
        "hoi_lightning.config_error",
        "hoi_lightning.evaluate",
        "hoi_lightning.generate",
        "hoi_lightning.opening",
        "hoi_lightning.order",
        "hoi_lightning.report",
        "hoi_lightning.verbs",
        "hoi_lightning.__main__",
    },
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
DATA_PREP_MAY_IMPORT = {
    "hoi_lightning.hand_proxy",
    "hoi_lightning.data.sample",
    "hoi_lightning.errors",
    "hoi_lightning.verbs",
}
LIGHTNING_FLOOR = FLOOR["hoi_lightning.tasks"]


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imports(module: str) -> set[str]:
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {child if _exists(child) else str(node.module) for child in children}
    return found


def _exists(module: str) -> bool:
    path = ROOT / Path(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def floor(module: str) -> int:
    while module not in FLOOR:
        module = module.rpartition(".")[0]
    return FLOOR[module]


@pytest.mark.parametrize("module", modules("hoi_lightning"))
def test_imports_point_downwards(module: str) -> None:
    package = module.rpartition(".")[0]
    for name in imports(module):
        assert not name.startswith("data_prep"), f"{module} imports {name}"
        if name.split(".")[0] == "hoi_lightning":
            same_room = name.rpartition(".")[0] in (module, package) and package
            top = floor(module) == len(FLOORS) - 1
            assert floor(name) < floor(module) or same_room or top, f"{module} imports {name}"
        if name.split(".")[0] in ("lightning", "pytorch_lightning"):
            assert floor(module) >= LIGHTNING_FLOOR, f"{module} knows Lightning"
            assert name.startswith("lightning.pytorch"), (
                f"{module} imports {name}: only lightning.pytorch is one class tree"
            )


@pytest.mark.parametrize("module", modules("data_prep"))
def test_data_prep_knows_only_the_treaty(module: str) -> None:
    ours = {name for name in imports(module) if name.split(".")[0] == "hoi_lightning"}
    assert ours <= DATA_PREP_MAY_IMPORT, f"{module} imports {ours - DATA_PREP_MAY_IMPORT}"


def test_every_module_has_a_floor() -> None:
    assert len(modules("hoi_lightning")) > 25
    assert len(modules("data_prep")) > 8

"""The package's shape: imports go one way, `import rm` is light, what is public is documented."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import rm

ROOT = Path(rm.__file__).parent


def read_map() -> list[str]:
    """The modules in the order of the design page's map, of which each imports only from those before it."""
    found, folder = [], ""
    block = (ROOT.parent / "docs/design.md").read_text(encoding="utf-8").partition("```text\nrm/\n")[2]
    for line in block.partition("\n```")[0].splitlines():
        name, depth = line.split()[0], len(line) - len(line.lstrip())
        assert name.endswith("/") or len(line.split()) > 1, f"{name}: the map has no phrase for it"
        folder = "" if depth == 2 else folder
        if name.endswith("/"):
            folder = name.replace("/", ".")
        else:
            found.append(folder + name.removesuffix(".py"))
    return found


*ORDER, _LAST = read_map()
HEAVY = ["datasets", "orbax", "huggingface_hub", "matplotlib", "jinja2", "torch", "transformers", "rich", "tyro"]
HEAVY += ["tqdm", "safetensors", "pandas", "pyarrow", "starlette", "uvicorn", "wandb", "tensorboardX", "trackio"]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}
ROOMS = [name.split(".")[0] for name in FILES if name.endswith(".__init__") and name != "commands.__init__"]


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in its code."""
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            absolute = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["rm", *package[: len(package) + 1 - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            absolute = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for _, *rest in (parts for parts in absolute if parts[0] == "rm"):
            whole = ".".join(rest)
            found.add(whole if whole in MODULES else ".".join(rest[:-1]))
    return found


def test_every_module_has_its_place_in_the_map():
    assert sorted(ORDER) == sorted(MODULES)
    assert _LAST == "__init__"


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name):
    assert imported(name) - set(ORDER[: ORDER.index(name)]) == set()


def test_the_walk_sees_every_spelling_of_an_import():
    assert {"files.weights", "model.sharding", "errors"} <= imported("model.loading")
    assert {"errors", "files.hub", "text.chat"} <= imported("text.tokenizer")
    assert imported("errors") == set()


def test_few_files_stand_outside_the_rooms():
    assert len(list(ROOT.glob("*.py"))) <= 5


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_an_index_of_its_names(room):
    """Where a function had the name of its module, `rm.training.update` would be one or the other."""
    package = importlib.import_module(f"rm.{room}")
    assert (package.__doc__ or "").endswith(".")
    assert set(package.__all__) == {name for name in vars(package) if name in package.__all__}
    modules = {name.split(".")[1] for name in MODULES if name.startswith(f"{room}.")}
    assert modules & set(package.__all__) <= {"plots", "statistics"}, "these two are public as modules"
    assert not modules & set(rm.__all__) - {"plots", "statistics"}


def test_public_names_come_from_the_rooms():
    found = {name for room in ROOMS for name in importlib.import_module(f"rm.{room}").__all__}
    assert {name for name in rm.__all__ if not name.endswith("Error")} - found == {"__version__"}


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, rm; rm.score; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_list_of_public_names_is_exact():
    """A name for type checkers alone would be none when it is asked for, or the other way round."""
    nodes = ast.walk(ast.parse(FILES["__init__"].read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    assert sorted(alias.name for node in imports for alias in node.names) == sorted(rm.__all__)
    assert all(getattr(rm, name) is not None for name in rm.__all__)
    assert set(rm.__all__) <= set(dir(rm))


def test_what_is_not_public_is_not_there():
    with pytest.raises(AttributeError, match="module 'rm' has no attribute 'no_such_name'"):
        _ = rm.no_such_name


@pytest.mark.parametrize("name", [name for name in rm.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name):
    text = getattr(rm, name).__doc__
    assert text
    assert not text.startswith(f"{name}("), "only the signature that `dataclass` writes"


def test_every_public_name_is_used():
    """What no notebook, command, benchmark or page needs is only one more name to know."""
    root = ROOT.parent
    users = [*root.glob("notebooks/*.ipynb"), *root.glob("benchmarks/*.py"), *root.glob("rm/commands/*.py")]
    users += [root / "README.md", *root.glob("docs/*.md")]
    words = set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in users)))
    assert [name for name in rm.__all__ if name not in words and not name.endswith("Error")] == []


@pytest.mark.parametrize("name", FILES)
def test_input_is_never_checked_by_assert(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


def test_no_command_named_rm_is_installed():
    """It would shadow the system's `rm`."""
    assert [entry for entry in entry_points(group="console_scripts") if entry.value.startswith("rm.")] == []
    pyproject = ROOT.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        assert not {"scripts", "gui-scripts", "entry-points"} & set(project)

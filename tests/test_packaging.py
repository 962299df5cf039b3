"""The folders, their rooms and their metadata."""

import ast
import configparser
import importlib
from importlib import metadata

import pytest
from places import ROOT

FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/py.typed"))


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_folders_are_the_packages_of_setup_cfg(setup):
    packages = setup["options"]["packages"].split()
    mapped = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    rooms = (init.parent.relative_to(ROOT) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py"))
    assert sorted(packages) == sorted(".".join(("samdeblur", *room.parts)) for room in rooms)
    assert mapped == {f"samdeblur.{folder}": folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_type_checkers_see_the_package(folder):
    assert (ROOT / "typings" / "samdeblur" / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_data_files_are_in_the_wheel(setup, folder):
    patterns = [p.strip() for p in setup["options.package_data"][f"samdeblur.{folder}"].split(",")]
    packed = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
    data = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == packed


def test_every_requirement_is_pinned_in_the_constraints(setup):
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    extras = setup["options.extras_require"]["dev"]
    for line in (setup["options"]["install_requires"] + extras).strip().splitlines():
        assert line.split()[0].split("[")[0].lower().replace("_", "-") in pinned, line


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_face_of_a_package_names_what_it_exports(folder):
    stub = ROOT / folder / "__init__.pyi"
    tree = ast.parse(stub.read_text() if stub.exists() else "")
    exported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    package = importlib.import_module(f"samdeblur.{folder}")
    names = getattr(package, "__all__", [])
    assert set(names) == exported
    assert len(set(names)) == len(names)
    assert all(hasattr(package, name) for name in names)


def test_console_scripts_are_installed_and_can_be_called(setup):
    declared = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    installed = {script.name: script for script in metadata.distribution("samdeblur").entry_points}
    assert {name: script.value for name, script in installed.items()} == declared
    assert declared.keys() == {"samdeblur-prep", "samdeblur-train", "samdeblur-eval"}
    assert all(callable(script.load()) for script in installed.values())


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "benchmarks", "docs"])
def test_nothing_is_left_to_be_done(folder):
    words = ["raise NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME", "X" * 3]
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".sh", ".md", ".yaml", ".j2", ".cfg"):
            text = path.read_text()
            assert not [word for word in words if word in text], path


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_says_what_lives_there(folder):
    for init in (ROOT / folder).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init
        assert len(list(init.parent.glob("*.py"))) <= 16, f"{init.parent}: too many files for one room"


def test_every_module_of_a_folder_lies_in_a_package():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path

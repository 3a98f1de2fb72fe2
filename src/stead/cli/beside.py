"""Loads packages that ship beside the program: `benchmarks` and `proofs`.

In the wheel they are `stead.benchmarks` and `stead.proofs`; in a checkout they are folders beside `src`. Either way
they are imported under the first name, so that their relative imports, and those of each other, work.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click

import stead


def load(package: str, module: str = "") -> ModuleType:
    """A package (`benchmarks`), or one of its modules. Raises click.ClickException where it is not installed."""
    name = f"stead.{package}"
    if name not in sys.modules:
        beside = Path(stead.__file__).resolve().parent.parent.parent / package
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (beside / "__init__.py").is_file():
                raise click.ClickException(f"the {package} are not installed, and not at {beside}") from error
            _load_folder(name, beside)
    return importlib.import_module(f"{name}.{module}" if module else name)


def _load_folder(name: str, folder: Path) -> None:
    """Import a folder as the package."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)

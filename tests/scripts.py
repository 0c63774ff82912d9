"""The scripts of benchmarks/, which belong to no package."""

import importlib.util
import sys
from pathlib import Path


def load(name):
    """The module benchmarks/<name>.py."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

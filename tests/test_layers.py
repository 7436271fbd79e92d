"""The import rule, checked on the syntax tree; `docs/design.md` says the floors."""

from pathlib import Path
import subprocess
import sys

import pytest

from tests.conformance import layers


ROOT = Path(__file__).parents[1]


def test_the_page_has_floors():
    floors = layers.floors(ROOT)
    assert {"core", "lab", "linalg", "sensing", "experiments"} <= set(floors)
    assert floors["core"] == min(floors.values()) < max(floors.values())


def test_imports_go_down():
    assert not list(layers.imports_go_down(ROOT))


PAGE = """
```
jaxlr/      the library
  core/     floor 0: shared
  lab/      floor 1: lab
  linalg/   floor 2: algebra
  sensing/  floor 3: a family
  sharpness/  floor 3: a family
```
"""


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("core", "from jaxlr.lab import store"),
        ("lab", "from jaxlr import sensing"),
        ("lab", "import jaxlr.linalg.svd"),
        ("sensing", "def f():\n    from jaxlr.sharpness import sam"),
        ("sensing", "from . import problem"),
        ("sensing", "import jaxlr"),
        ("core", "import experiments.sensing"),
        ("linalg", "from jaxlr.newest import anything"),  # with no floor yet
    ],
)
def test_a_violation_is_seen(tmp_path, own, source):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "design.md").write_text(PAGE)
    path = tmp_path / "jaxlr" / own / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text("from jaxlr.core import tree\nfrom jaxlr import core\n")
    assert not [v for v in layers.imports_go_down(tmp_path) if own != "core"]
    path.write_text(source)
    assert list(layers.imports_go_down(tmp_path))


def test_import_jaxlr_is_light():
    """`import jaxlr` loads none of its dependencies."""
    code = (
        "import sys, jaxlr; "
        "print([m for m in ('jax', 'numpy', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

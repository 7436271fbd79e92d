"""Every process finds the same digests, however it shows what it prints."""

import os
import pty
import subprocess
import sys

import pytest

from tests.lab import _toys as toys
from tests.lab._digests import digest, host


TEXT = '''
import numpy as np

FACTOR = 2.0

class Scale:
    """Scales."""
    power = 2

    def __call__(self, x):
        """x scaled."""
        return FACTOR * x ** self.power

def callback(x, scale=Scale()):
    """Its doc."""
    names = {"one", "two", "three", "four"}
    if "two" in {"zwei", "two", "deux", "due"}:
        return np.float32(scale(x) + len(names))
    return x
'''


def compiled(text, filename="a.py", module="mine"):
    space = {"__name__": module}
    exec(compile(text, filename, "exec"), space)
    return host(space["callback"])


@pytest.mark.parametrize(
    "change",
    [
        ("import numpy", "# A comment.\n\n\nimport numpy"),
        ('"""Its doc."""', '"""Another doc."""'),
        ('"""Scales."""', '"""It scales."""'),
        ('"""x scaled."""', '"""x, scaled."""'),
        ("FACTOR = 2.0\n", "FACTOR = 2.0\nUNRELATED = 3.0\n"),
        ('"zwei", "two"', '"two", "zwei"'),
        ("return FACTOR", "return  (FACTOR"),
    ],
)
def test_what_is_only_written_otherwise_is_the_same(change):
    old, new = change
    text = TEXT.replace(old, new)
    assert text != TEXT
    text = text.replace("(FACTOR * x ** self.power", "(FACTOR * x ** self.power)")
    assert digest(compiled(text, "/b/c.py", "other")) == digest(compiled(TEXT))


@pytest.mark.parametrize(
    "change",
    [
        ("FACTOR = 2.0", "FACTOR = 2"),
        ("power = 2", "power = 3"),
        ("* x **", "+ x **"),
        ('"four"', '"for"'),
        ("scale=Scale()", "scale=abs"),
        ("+ len", "- len"),
    ],
)
def test_what_is_written_otherwise_and_does_otherwise_is_another(change):
    assert digest(compiled(TEXT.replace(*change))) != digest(compiled(TEXT))


PROCESS = """
import sys
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
from jaxlr.lab import provenance
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.request import Request
from tests.lab import _toys as toys

NAMES = {"one", "two", "three", "four", "five"}
TABLE = {name: frozenset((name, len(name))) for name in sorted(NAMES)}

class Look:
    def __init__(self, names):
        self.names = names

    def __call__(self, x):
        return np.float32(sum(len(TABLE[n]) for n in self.names)) * x

def run(key, hparams):
    x = jax.pure_callback(
        Look(NAMES),
        jax.ShapeDtypeStruct((), jnp.float32),
        jnp.float32(hparams.rate),
        vmap_method="sequential",
    )
    jax.debug.callback(lambda x: NAMES, x)

    @jax.custom_batching.sequential_vmap
    def serial(x):
        return x + len(NAMES)

    chol = jnp.linalg.cholesky(jnp.eye(3) * x)
    return {"x": jax.nn.relu(serial(x)) + jr.normal(key), "chol": chol}

def main():
    for toy in (toys.closed(), toys.long(), toys.closed().replace(run=run)):
        compiled = Compiled(Request.make(toy))
        print("digest", compiled.lane(0).fingerprint.digest)
        print("source", provenance.source_digest(toy))
    jaxpr = jax.make_jaxpr(lambda x: x + 1)(1.0)
    print("colored", chr(27) in str(jaxpr), file=sys.stderr)

if __name__ == "__main__":
    main()
"""


def _piped(command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def _on_a_terminal(command, **settings):
    """What a command writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, **settings
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 1 << 16):
            written += piece
    except OSError:  # so Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    text = written.decode().replace("\r\n", "\n")
    return text, text


@pytest.mark.slow
def test_every_process_finds_the_same_digests(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PROCESS)
    script = [sys.executable, str(tmp_path / "one/mine.py")]
    imported = [sys.executable, "-c", "import mine; mine.main()"]
    odd = {"COLUMNS": "41", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
    plain = os.environ | {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu"}
    plain |= {"TERM": "xterm-256color", "PYTHONHASHSEED": "0"}
    runs = {
        "pipe": _piped(script, env=plain),
        "terminal": _on_a_terminal(script, env=plain),
        "hash seed": _piped(script, env=plain | {"PYTHONHASHSEED": "12"}),
        "environment": _on_a_terminal(
            script, env=plain | odd | {"PYTHONHASHSEED": "3"}, cwd=tmp_path
        ),
        "imported": _piped(
            imported,
            env=plain | {"PYTHONPATH": f"{toys.ROOT}:{tmp_path / 'two'}"},
            cwd="/",
        ),
    }
    assert "colored False" in runs["pipe"][1]
    assert "colored True" in runs["terminal"][1]
    found = {
        name: [x for x in out.splitlines() if x.startswith(("digest", "source"))]
        for name, (out, _) in runs.items()
    }
    assert len(set(found["pipe"])) == 5  # two toys are of one file
    assert all(lines == found["pipe"] for lines in found.values()), found


@pytest.mark.slow
def test_a_notebook_finds_the_same_digests(tmp_path):
    import nbclient
    import nbformat

    (tmp_path / "mine.py").write_text(PROCESS)
    env = os.environ | {"PYTHONPATH": f"{toys.ROOT}:{tmp_path}"}
    wanted, _ = _piped([sys.executable, "-c", "import mine; mine.main()"], env=env)
    cells = [nbformat.v4.new_code_cell(PROCESS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook).execute(env=env)
    outputs = notebook.cells[0].outputs
    streams = [x for x in outputs if x["output_type"] == "stream"]  # in pieces
    text = {
        name: "".join(x["text"] for x in streams if x["name"] == name)
        for name in ("stdout", "stderr")
    }
    assert "colored True" in text["stderr"]
    digests = [x for x in text["stdout"].splitlines() if x.startswith("digest")]
    assert digests == [x for x in wanted.splitlines() if x.startswith("digest")]
    assert len(set(digests)) == 3


CYCLE = """
from jaxlr.lab import fingerprint

class Node:
    def __init__(self, name):
        self.name, self.next, self.other = name, None, None
    def __hash__(self):
        return hash(self.name)
    def __eq__(self, other):
        return self is other

a, b, c, d = map(Node, "abcd")
a.next, b.next, c.next, d.next = b, c, a, {a, b, c}
a.other, b.other, c.other, d.other = {b, c, d}, {a, c}, frozenset((a, b, d)), a
for fn in (lambda: (a, {a, b, c, d})), (lambda: d):
    print(fingerprint.of(fn).digest)
"""


@pytest.mark.slow
def test_the_order_of_a_set_in_a_cycle_does_not_count(tmp_path):
    (tmp_path / "mine.py").write_text(CYCLE)
    env = os.environ | {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "mine.py")]
    found = {
        _piped(command, env=env | {"PYTHONHASHSEED": str(seed)})[0] for seed in range(6)
    }
    assert len(found) == 1

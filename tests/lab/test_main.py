"""Experiments of a script's `__main__` and of notebook cells, on workers elsewhere."""

from pathlib import Path
import pickle
import subprocess
import sys

import jax
from nbclient import NotebookClient
import nbformat
import pytest

from tests.lab import _toys as toys


README = (toys.ROOT / "README.md").read_text()
[MINE] = [x for x in README.split("```python\n") if x.startswith("import equinox as e")]
MINE = MINE.partition("\nif __name__")[0]

# What is done once when classes are defined, by equinox and jax; a module beside.
HELPER = """
import equinox as eqx

class Base(eqx.Module):
    scale: float = 1.0

def twice(x):
    return 2 * x
"""
CLASSES = """
import dataclasses
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxlr.core import Experiment
import helper

class Net(helper.Base):
    weights: jax.Array
    size: int = eqx.field(static=True)

    def __init__(self, key, size):
        self.scale = 2.0
        self.weights = jr.normal(key, (size,))
        self.size = size

    def __call__(self, x):
        return self.scale * self.weights @ x

class Heir(Net):  # whose `__init__` is Net's
    def copy(self):
        return Heir(KEY, self.size)

class Node(eqx.Module):
    value: float = eqx.field(converter=jnp.asarray, default=1.0)
    next: "Node | None" = None

    def push(self):
        return Node(self.value, self)

@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    x: jax.Array
    name: str = dataclasses.field(metadata={"static": True}, default="s")

@jax.tree_util.register_pytree_node_class
class Pair:
    def __init__(self, one, two):
        self.one, self.two = one, two

    def tree_flatten(self):
        return (self.one, self.two), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)

class Settings(eqx.Module):
    rate: float = 0.1
    size: int = eqx.field(static=True, default=3)

KEY = jr.key(7)

@jax.custom_jvp
def sine(x):
    return jnp.sin(x)

@sine.defjvp
def slope(primals, tangents):
    return sine(*primals), 3 * tangents[0]

@jax.jit
def energy(net, x):
    return sine(net(helper.twice(x)))

def rich(key, settings):
    def step(carry, _):
        state, pair, net = carry
        net = jax.tree.map(jnp.subtract, net, jax.grad(energy)(net, state.x))
        x = state.x - settings.rate * Node(net.scale).push().next.value
        return (State(x, state.name), Pair(pair.two, net.scale), net), pair.one

    net = Heir(key, settings.size).copy()
    start = State(jr.normal(key, (settings.size,))), Pair(net.scale, 1.0), net
    return {"y": jax.lax.scan(step, jax.tree.map(jnp.asarray, start), None, 9)[1]}

RICH = Experiment(run=rich, hparams=Settings(), num_seeds=2, axes={"size": [2, 3]})
"""

COMPARE = """
def compare(executor):
    axes = {"alpha": [0.5, 0.1], "num_columns": [3, 5]}
    for experiment, swept in (EXPERIMENT, axes), (RICH, {"size": [2, 3]}):
        one, two = (
            lab.sweep(experiment, swept, executor=x, chunk=2) for x in (None, executor)
        )
        assert (one.fillna(7) == two.fillna(7)).all().to_array().all()
    print("the same")
"""
EXECUTORS = {
    "spawn": """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        compare(pool)
""",
    "dask": """
    import os
    from distributed import Client, LocalCluster
    processes = dict(n_workers=2, threads_per_worker=1, processes=True)
    with LocalCluster(dashboard_address=":0", **processes) as cluster:
        with Client(cluster) as client:
            client.run(os.chdir, "/")  # beside which no module lies
            compare(client.get_executor())
            compare(client)
""",
    "submitit": """
    import submitit
    compare(submitit.LocalExecutor("logs"))
""",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the script or notebook lies, with a module beside it."""
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", str(toys.ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def _python(folder: Path, text: str) -> subprocess.CompletedProcess:
    (folder / "mine.py").write_text(text)
    command = [sys.executable, "mine.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=300)


def test_classes_of_a_script_are_whole_where_they_arrive(folder, monkeypatch):
    dump = """
import sys
from jaxlr.lab import pickling
experiment = RICH.replace(axes={})
sys.stdout.buffer.write(pickling.dumps((experiment, Net, Heir, Node, State, Pair)))
"""
    done = _python(folder, CLASSES + dump)
    assert done.returncode == 0, done.stderr.decode()
    monkeypatch.syspath_prepend(folder)
    experiment, net, heir, node, state, pair = pickle.loads(done.stdout)
    assert net.__module__ == "__main__"
    assert not hasattr(sys.modules["__main__"], "Net")
    key = jax.random.key(0)
    tree = net(key, 3), heir(key, 2), node().push(), state(1.0), pair(1.0, 2.0)
    assert list(map(len, map(jax.tree.leaves, tree))) == [2, 2, 2, 1, 2]
    again = jax.tree.map(lambda x: x, tree)
    assert again[2].push().next.value == 1
    assert (again[0].size, again[3].name) == (3, "s")
    with pytest.raises(AttributeError, match="cannot assign to field 'scale'"):
        again[0].scale = 1.0
    found = jax.vmap(lambda rate: experiment.run(key, type(experiment.hparams)(rate)))
    assert found(jax.numpy.array([0.1, 0.2]))["y"].shape == (2, 9)


@pytest.mark.slow
@pytest.mark.parametrize("how", EXECUTORS)
def test_a_script_runs_elsewhere(folder, how):
    main = f'if __name__ == "__main__":\n{EXECUTORS[how]}'
    done = _python(folder, MINE + CLASSES + COMPARE + main)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("the same") == 1 + (how == "dask")


# nbclient and the kernel close their sockets and loops late.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.slow
@pytest.mark.parametrize("how", EXECUTORS)
def test_a_notebook_cell_runs_elsewhere(folder, how):
    cells = [MINE + CLASSES, COMPARE, f"if True:\n{EXECUTORS[how]}"]
    new = nbformat.v4.new_code_cell
    notebook = nbformat.v4.new_notebook(cells=list(map(new, cells)))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    printed = "".join(x.get("text", "") for x in notebook.cells[-1].outputs)
    assert printed.count("the same") == 1 + (how == "dask")

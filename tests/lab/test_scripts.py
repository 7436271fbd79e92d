"""The command line as scripts use it: JSON, exit statuses, files of flags."""

import builtins
import json
from pathlib import Path

import pytest

import jaxlr
from jaxlr import lab
from jaxlr.lab import find
from jaxlr.lab.cli import commands, config, flags, main
from tests.lab._files import MINE


pytestmark = pytest.mark.usefixtures("away", "mine")


def called(capsys, *words):
    """Exit status, the object on stdout, and what was said on stderr."""
    status = main([*words, "--json"])
    out, error = capsys.readouterr()
    assert out.count("\n") == 1

    def refuse(word):
        raise ValueError(word)

    found = json.loads(out, parse_constant=refuse)
    assert found["status"] == status
    return status, found, error


def test_list(capsys):
    status, found, error = called(capsys, "list")
    assert status == 0
    paths = {x["name"]: x["path"] for x in found["experiments"]}
    assert paths == {name: str(path) for name, path in find.names().items()}
    assert all(x["question"] for x in found["experiments"])
    assert next(iter(paths)) in error


def test_plan_runs_and_writes_nothing(capsys, monkeypatch):
    monkeypatch.setitem(vars(lab), "sweep", None)
    status, found, error = called(capsys, "plan", "mine.py", "--axis", "eta=.1,.2,.3")
    assert status == 0
    wanted = lab.plan(find.find("mine.py"), {"eta": (0.1, 0.2, 0.3)})
    assert (found["num_cells"], found["num_seeds"]) == (6, 2)
    assert found["dims"] == {"eta": 3, "method": 2}
    assert found["num_chunks"] == wanted.num_chunks * 2  # a method each
    assert "6 (3 eta x 2 method)" in error
    assert not Path("runs").exists()
    assert main(["plan", "mine.py"]) == 0
    assert "4 (2 eta x 2 method)" in capsys.readouterr().out


def test_run_show_and_replay(capsys):
    Path("mine.py").write_text("print('loaded')\n" + MINE)
    status, found, error = called(capsys, "run", "mine.py", "--directory", "r")
    assert status == 0
    assert "loaded" in error
    assert (found["experiment"], found["is_complete"]) == ("mine", True)
    assert found["plan"]["num_cells"] == 4
    assert found["claims"] == json.loads(Path("r/claims.json").read_text())
    assert (found["results"], found["figure"]) == ("r", "r/figure.png")
    assert (found["problems"], found["notes"]) == ([], [])
    for word in ("4 (2 eta x 2 method)", "it decays", "figure.png"):
        assert word in error
    status, shown, error = called(capsys, "show", "r")
    assert status == 0
    assert shown["claims"] == found["claims"]
    assert shown["attributes"]["experiment"] == "mine"
    assert "Provenance" in error
    cell = ["--cell", "eta=0.25", "method=gd"]
    status, found, error = called(capsys, "replay", "r", *cell)
    assert (status, found["is_equal"]) == (0, True)
    assert "bit by bit" in found["replay"]
    error = lab.load("r").error.isel(eta=0, method=0, seed=0)
    assert found["metrics"]["error"]["sizes"] == {"step": 20}
    ends = found["metrics"]["error"]["first"], found["metrics"]["error"]["last"]
    assert ends == (error.values[0].item(), error.values[-1].item())


def test_doctor_and_reproduce(capsys):
    _, found, error = called(capsys, "doctor")
    assert found["versions"]["jaxlr"] == jaxlr.__version__
    assert found["devices"][0]["platform"]
    assert {"what", "why"} == set(found["limits"][0])
    assert "Versions" in error
    status, found, error = called(capsys, "reproduce", "--smoke", "mine.py")
    assert status == 0
    assert [x["experiment"] for x in found["experiments"]] == ["mine.py"]
    assert found["experiments"][0]["claims"][0]["holds"]


def test_what_is_not_finite_is_null(capsys):
    Path("mine.py").write_text(MINE.replace("error = (", "error = jnp.inf * ("))
    status, found, _ = called(capsys, "run", "mine.py", "--directory", "r")
    assert status == 1
    assert not found["claims"][0]["holds"]
    _, found, _ = called(capsys, "replay", "r", "--cell", "eta=0.5", "method=gd")
    assert found["metrics"]["error"]["first"] is None


@pytest.mark.parametrize(
    ("change", "words", "status", "message"),
    [
        (("", ""), ["runn"], 2, "did you mean 'run'"),
        (("", ""), ["run", "mine.py", "--seeds", "0"], 2, "`num_seeds`"),
        (("high=0.1", "high=1e-9"), ["run", "mine.py"], 1, None),
        (("if hp.num_steps", "if hp.lost"), ["run", "mine.py"], 3, "AttributeError: "),
        (("import jax.random", "import lost.random"), ["run", "mine.py"], 2, "'lost'"),
        (
            ("    if hp.num_steps", "    import lost\n    if 3"),
            ["run", "mine.py"],
            2,
            "lost",
        ),
        (('results["last"]', 'results["lost"]'), ["run", "mine.py"], 3, None),
        (
            ("    if hp.num", "    raise KeyboardInterrupt\n    if hp.num"),
            ["run", "mine.py"],
            130,
            "Stopped",
        ),
    ],
)
def test_each_kind_of_end_has_its_status(capsys, change, words, status, message):
    Path("mine.py").write_text(MINE.replace(*change))
    found = called(capsys, *words)[1]
    assert found["status"] == status
    assert message is None or message in found["error"]


def test_what_an_extra_brings_is_one_line_where_it_is_missing(capsys, monkeypatch):
    """At the import of a file, and within its functions."""
    original = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    assert main(["run", "sharpness.digits", "--smoke"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'needs sklearn: run `pip install "jaxlr[data]"`.' in line


def parsed(text, *words):
    Path("flags.toml").write_text(text)
    found = flags.parse(["mine.py", "--config", "flags.toml", *words])
    return found.general, found.experiment.hparams, found.axes


FLAGS = """
seeds = 5
chunk = 2
smoke = true
force = false
x64 = false
beta = -1e-3
num-steps = 7
use_noise = false
sizes = [3, 4]
hparams.seed = 9
[axis]
eta = [0.1, 0.2]
method = "sgd"
"""


def test_a_file_has_flags_by_their_names():
    general, hparams, axes = parsed(FLAGS)
    assert (general.seeds, general.chunk, general.smoke) == (5, 2, True)
    assert (hparams.beta, hparams.num_steps, hparams.seed) == (-1e-3, 7, 9)
    assert (hparams.use_noise, hparams.sizes) == (False, (3, 4))
    assert axes == {"eta": (0.1, 0.2), "method": ("sgd",)}


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        (["--axis", "eta=.4"], {"eta": (0.4,), "method": ("sgd",)}),
        (
            ["--axis=eta/beta=1,2/3,4"],
            {("eta", "beta"): ((1, 3), (2, 4)), "method": ("sgd",)},
        ),
        (["--eta", "0.5"], {"method": ("sgd",)}),
        (
            ["--axis", "num-steps=4,5"],
            {"eta": (0.1, 0.2), "method": ("sgd",), "num_steps": (4, 5)},
        ),
    ],
)
def test_the_command_line_outdoes_the_file(words, axes):
    general, hparams, found = parsed(FLAGS, "--seeds", "6", "--use-noise", *words)
    assert (general.seeds, general.chunk) == (6, 2)
    assert hparams.use_noise
    assert found == axes


def test_a_configured_run_is_the_one_of_its_flags(capsys):
    Path("flags.toml").write_text("seeds = 1\n[axis]\neta = 'lin:0.2:0.4:3'")
    words = ["--directory", "r", "--config", "flags.toml"]
    assert main(["run", "mine.py", *words]) == 0
    assert lab.load("r").sizes["eta"] == 3
    assert lab.load("r").sizes["seed"] == 1
    assert main(["plan", "mine.py", "--config=flags.toml"]) == 0
    assert "6 (3 eta x 2 method), 1 seeds" in capsys.readouterr().out


def test_fields_inside_a_field_are_tables():
    text = (
        "[opt]\nlr = 0.1\n[opt.deep]\non = true\n[axis]\n'opt.b' = [1, 2]\n'c.d' = [1]"
    )
    Path("f.toml").write_text(text)
    words = config.words("f.toml", ["--opt.deep.on", "--axis", "c.d=2"], ())
    assert words == ["--opt.lr=0.1", "--opt.deep.on", "--axis=opt.b=1,2"]


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eta = = 1", "Cannot read the configuration flags.toml"),
        ("eta = 1979-05-27", "'eta' takes words and numbers"),
        ("[axis]\nmethod = ['a,b']", "the axis 'method' has 'a,b'"),
        ("axis = ['eta=1']", "`axis` is a table"),
        ("[axis]\neta = [[1, 2]]", "'eta' takes words and numbers"),
        ("config = 'other.toml'", "of the command line alone"),
    ],
)
def test_a_bad_file_is_one_line(capsys, text, message):
    Path("flags.toml").write_text(text)
    assert main(["run", "mine.py", "--config", "flags.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert main(["run", "mine.py", "--config", "lost.toml"]) == 2
    assert "lost.toml" in capsys.readouterr().err


def test_a_misspelled_key_is_named(capsys):
    Path("flags.toml").write_text("etta = 1")
    with pytest.raises(SystemExit) as caught:
        main(["run", "mine.py", "--config", "flags.toml"])
    assert caught.value.code == 2
    assert "etta" in capsys.readouterr().err


def test_home_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["run", "mine.py", "--directory=~/r"]) == 0
    assert main(["show", "~/r"]) == 0
    assert (tmp_path / "home" / "r" / "claims.json").exists()
    assert commands.RUNS == Path("runs")

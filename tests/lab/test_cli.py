"""The command line, from words to exit status."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

import jaxlr
from jaxlr import lab
from jaxlr.core import Claim
from jaxlr.lab import find, progress
from jaxlr.lab.cli import commands, flags, main
from tests.lab import _toys as toys
from tests.lab._files import LONG, MINE


ROOT = Path(__file__).resolve().parents[2]


NESTED = '''"""Fields inside fields."""
from typing import Any, Literal

import equinox as eqx
import jax.random as jr
from jaxlr.core import Experiment


class Opt(eqx.Module):
    lr: float = 0.5
    """Step size [1/L]."""
    weight_decay: float | None = None
    """Pull to zero."""
    is_fast: bool = eqx.field(static=True, default=True)
    betas: tuple[float, ...] = eqx.field(static=True, default=(0.9, 0.99))
    widths: list[int] | None = eqx.field(static=True, default=None)


class HParams(eqx.Module):
    opt: Opt = Opt()
    decay: float | None = 0.5
    form: Literal["a", "b"] | None = eqx.field(static=True, default=None)
    sizes: tuple[float, ...] = eqx.field(static=True, default=())
    other: Any = eqx.field(static=True, default=None)
    order: int = 2


def run(key, hp):
    weight_decay = 7.0 if hp.opt.weight_decay is None else hp.opt.weight_decay
    terms = hp.opt.lr, weight_decay, *hp.opt.betas, *hp.sizes
    return {"x": jr.normal(key) * sum(terms) * (1 if hp.order == 2 else 3)}


EXPERIMENT = Experiment(run=run, hparams=HParams(), axes={"opt.lr": (0.1, 0.2)})
'''


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "FIRST_LINE", 600.0)  # also where all is slow
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")  # tyro's and rich's tables unwrapped


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def swept(monkeypatch):
    """What `lab.sweep` was called with; it runs nothing."""
    calls = []

    class Stop(BaseException):
        pass

    def sweep(experiment, axes=None, **arguments):
        calls.append((experiment, axes, arguments))
        raise Stop

    monkeypatch.setattr(commands, "_devices", lambda platform: platform)
    monkeypatch.setitem(vars(lab), "plan", lambda *_, **__: "the plan")
    monkeypatch.setitem(vars(lab), "sweep", sweep)

    def call(*words):
        with pytest.raises(Stop):
            main(["run", *words])
        return calls.pop()

    return call


def only_run(name="mine"):
    (directory,) = (Path("runs") / name).iterdir()
    return directory


def test_run_shows_plan_claims_and_paths_and_keeps_them(mine, capsys):
    assert main(["run", "mine.py"]) == 0
    text = capsys.readouterr().out
    directory = only_run()
    words = (
        "4 (2 eta x 2 method), 2 seeds",
        "it decays",
        "<= 0.1",
        "holds",
        "calculus",
    )
    for word in (
        *words,
        str(directory / "figure.png"),
        str(directory / "manifest.json"),
    ):
        assert word in text
    assert (directory / "figure.png").stat().st_size > 1000
    (claim,) = json.loads((directory / "claims.json").read_text())
    assert (claim["low"], claim["high"], claim["holds"]) == (None, 0.1, True)
    assert len(claim["measured"]) == 8
    assert dict(lab.load(directory).sizes) == {
        "eta": 2,
        "method": 2,
        "seed": 2,
        "step": 20,
    }


def test_a_failing_claim_is_exit_1(mine, capsys):
    assert main(["run", "mine.py", "--eta", "0.01"]) == 1
    out = capsys.readouterr().out
    assert "fails" in out
    assert "eta is fixed by its flag: its axis is dropped." in out


def test_flags_reach_the_sweep(mine, swept):
    experiment, axes, arguments = swept(
        *("--smoke", "mine.py", "--beta", "-1e-3", "--num_steps", "7"),
        *("--hparams.seed", "9", "--seed", "4", "--seeds", "5", "--no-use-noise"),
        *("--axis", "eta=.1,.2,.3", "--directory", "here", "--chunk", "2", "--x64"),
        *("--device", "tpu", "--backend", "pmap", "--sizes", "3", "4", "5"),
    )
    hparams = experiment.hparams
    assert (hparams.beta, hparams.num_steps, hparams.seed) == (-1e-3, 7, 9)
    assert (hparams.use_noise, hparams.sizes) == (False, (3, 4, 5))
    assert (experiment.x64, experiment.num_seeds, experiment.name) == (True, 1, "mine")
    assert axes == {"eta": (0.1, 0.2, 0.3), "method": ("gd", "sgd")}
    assert arguments == {
        "num_seeds": 5,
        "seed": 4,
        "directory": Path("here"),
        "resume": False,
        "lanes": None,
        "chunk": 2,
        "devices": "tpu",
        "backend": "pmap",
    }


def test_flags_that_are_not_given_change_nothing(mine, swept):
    experiment, axes, arguments = swept("mine.py")
    assert vars(experiment.hparams) == vars(find.find(mine).hparams)
    assert axes == {"eta": (0.25, 0.5), "method": ("gd", "sgd")}
    assert arguments["num_seeds"] is None
    assert arguments["devices"] is None
    assert str(arguments["directory"]).startswith("runs/mine/20")
    smoke, _, _ = swept("mine.py", "--smoke")
    assert (smoke.hparams.num_steps, smoke.num_seeds) == (10, 1)


def test_a_flag_equal_to_the_default_still_wins_over_the_axis(mine, swept):
    experiment, axes, _ = swept("mine.py", "--eta", "0.5")
    assert experiment.hparams.eta == 0.5
    assert axes == {"method": ("gd", "sgd")}


def test_x64_can_be_turned_off(mine, swept):
    mine.write_text(MINE.replace("num_seeds=2,", "num_seeds=2, x64=True,"))
    assert swept("mine.py")[0].x64
    assert not swept("mine.py", "--no-x64")[0].x64


def test_long_runs_have_flags_of_their_own(tmp_path, swept, capsys):
    (tmp_path / "long.py").write_text(LONG)
    experiment, _, _ = swept("long.py", "--every", "2", "--checkpoint-seconds", "0.5")
    assert (experiment.every, experiment.checkpoint_seconds) == (2, 0.5)
    (tmp_path / "mine.py").write_text(MINE)
    assert main(["run", "mine.py", "--every", "2"]) == 2
    assert "--every is for long runs; mine has `run`" in capsys.readouterr().err


def test_a_long_run_without_claims_and_figure(tmp_path, capsys):
    (tmp_path / "long.py").write_text(LONG)
    assert main(["run", "long.py", "--axis", "eta=lin:.1:.9:3"]) == 0
    assert "makes no claims" in capsys.readouterr().out
    assert (only_run("long") / "figure.png").exists()
    assert json.loads((only_run("long") / "claims.json").read_text()) == []


def test_nested_and_optional_fields_have_flags(tmp_path, swept):
    (tmp_path / "nested.py").write_text(NESTED)
    experiment, axes, _ = swept(
        *("nested.py", "--opt.weight-decay", "0.25", "--opt.no-is-fast"),
        *("--opt.betas", ".5", ".6", "--opt.widths", "3", "4", "--decay", "None"),
        *("--form", "b", "--sizes", "1", "2.5", "--axis", "opt.lr=.3,.4"),
    )
    hparams = experiment.hparams
    opt = hparams.opt
    assert (opt.weight_decay, opt.is_fast, opt.betas) == (0.25, False, (0.5, 0.6))
    assert (opt.widths, opt.lr) == ([3, 4], 0.5)
    assert (hparams.decay, hparams.form, hparams.sizes) == (None, "b", (1.0, 2.5))
    assert axes == {"opt.lr": (0.3, 0.4)}
    experiment, axes, _ = swept(
        *("nested.py", "--opt.weight_decay", "None", "--opt.lr", "0.125"),
        *("--axis", "opt.betas/decay=1,2/None,3"),
    )
    assert (experiment.hparams.opt.lr, experiment.hparams.opt.weight_decay) == (
        0.125,
        None,
    )
    assert axes == {("opt.betas", "decay"): ((1, None), (2, 3))}


def test_a_file_of_flags_sets_nested_fields(tmp_path, swept):
    (tmp_path / "nested.py").write_text(NESTED)
    (tmp_path / "flags.toml").write_text(
        "[opt]\nis_fast = false\nbetas = [0.5]\nweight_decay = 'None'\n"
        "[axis]\nopt.lr = [0.3, 0.4]\n"
    )
    experiment, axes, _ = swept("nested.py", "--config", "flags.toml")
    opt = experiment.hparams.opt
    assert (opt.is_fast, opt.betas, opt.weight_decay) == (False, (0.5,), None)
    assert axes == {"opt.lr": (0.3, 0.4)}
    words = ("--config", "flags.toml", "--opt.is-fast", "--opt.lr", "0.25")
    experiment, axes, _ = swept("nested.py", *words)
    assert (experiment.hparams.opt.is_fast, experiment.hparams.opt.lr) == (True, 0.25)
    assert axes == {}


def test_help_lists_nested_and_optional_fields(tmp_path, capsys):
    (tmp_path / "nested.py").write_text(NESTED)
    with pytest.raises(SystemExit):
        main(["run", "nested.py", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--opt.lr FLOAT Step size. [1/L] (default: 0.5)" in text
    assert "--opt.weight-decay {None}|FLOAT Pull to zero. (default: None)" in text
    assert "--form {None,a,b}" in text
    assert "No flags, to be set in Python: other." in text


@pytest.mark.parametrize(
    "words",
    [
        ("--opt.betas", ".5", ".6"),
        ("--sizes", "1", "2", "--opt.weight-decay", "3"),
        ("--axis", "opt.weight-decay=None,0.5", "--opt.is-fast"),
    ],
)
def test_what_flags_and_axes_set_is_replayed(tmp_path, capsys, words):
    """In a process that has not swept it: from what the run recorded."""
    from jaxlr.lab import engine

    (tmp_path / "nested.py").write_text(NESTED)
    assert main(["run", "nested.py", *words, "--directory", "kept"]) == 0
    engine.SWEPT.clear()
    cell = ("opt.lr=.2", *(["opt.weight-decay=None"] if "--axis" in words else []))
    again = ("replay", "kept", "--experiment", "nested.py", "--cell", *cell)
    assert main([*again]) == 0
    out = capsys.readouterr().out
    assert "Equal bit by bit (expected bit by bit" in " ".join(out.split())


@pytest.mark.misuse
def test_an_if_on_a_swept_field_is_one_line_that_says_what_to_do(tmp_path, capsys):
    (tmp_path / "nested.py").write_text(NESTED)
    assert main(["run", "nested.py", "--axis", "order=1,2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs order in Python" in line
    assert "Mark it static, `order: ... = eqx.field(static=True" in line
    assert line.endswith("(nested.py, line 31)")


def test_help_lists_hyper_parameters_with_docs(mine, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "mine.py", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--eta FLOAT Step size. [1/L] (default: 0.5)" in text
    assert "--hparams.seed INT Not the root's. (default: 3)" in text
    assert "--seed INT Seed of the root key." in text
    assert "--method {gd,sgd}" in text
    assert "--other" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "mne"], "Unknown experiment 'mne'"),
        (["run", "gone.py"], "There is no file 'gone.py'"),
        (["run", "--eta", "0.2", "mine.py"], "comes before its own flags"),
        (["run", "mine.py", "--force"], "--force goes with --resume"),
        (["run", "mine.py", "--resume"], "There is no unfinished run in runs/mine"),
        (["run", "mine.py", "--axis", "eta=1", "--eta", "2"], "'eta' is given twice"),
        (["run", "mine.py", "--axis", "etta=1"], "did you mean 'eta'"),
        (["run", "mine.py", "--axis", "eta=log:0:1:3"], "An axis is NAME=SPEC"),
        (["run", "mine.py", "--seeds", "0"], "`num_seeds` must be an integer >= 1"),
        (["run", "mine.py", "--directory", "."], "is no run directory"),
        (["show", "gone"], "gone holds no run"),
        (["replay", "gone", "--cell", "eta"], "--cell takes NAME=VALUE, got 'eta'"),
        (["compile", "mine.py", "--target", "v5"], "did you mean 'v5"),
        (["reproduce", "mne"], "Unknown experiment 'mne'"),
    ],
)
def test_misuse_is_one_line_and_exit_2(mine, capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_an_absent_platform_is_refused_with_what_there_is(mine, capsys):
    import jax

    if any(device.platform == "tpu" for device in jax.devices()):
        pytest.skip("This machine has a TPU.")
    assert main(["run", "mine.py", "--device", "tpu"]) == 2
    assert "--device tpu: there is none here; present: cpu" in capsys.readouterr().err
    assert [d.platform for d in commands._devices("cpu") or ()] == ["cpu"]


@pytest.mark.parametrize(
    "words", [["--etta", "1"], ["--eta", "x"], ["--device", "npu"]]
)
def test_unreadable_flags_exit_2(mine, words):
    with pytest.raises(SystemExit) as caught:
        main(["run", "mine.py", *words])
    assert caught.value.code == 2


@pytest.mark.parametrize("method", [(), ("--method", "gd")])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hp.nothing", "AttributeError: 'HParams' object has no attribute 'nothing'"),
        ("raise ValueError('my own bug')", "ValueError: my own bug"),
        ("open('gone.csv')", "No such file or directory: 'gone.csv'"),
        ("int('x')", "ValueError: invalid literal for int()"),
    ],
)
def test_an_error_of_the_users_code_keeps_its_traceback_and_exits_3(
    mine, capsys, method, line, message
):
    mine.write_text(MINE.replace("def run(key, hp):", f"def run(key, hp):\n    {line}"))
    assert main(["run", "mine.py", *method]) == 3
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "mine.py" in error
    assert message in error


def test_the_group_that_cannot_be_traced_is_named(mine, capsys):
    line = "if hp.method == 'sgd':\n        bool(hp.eta)"
    mine.write_text(MINE.replace("def run(key, hp):", f"def run(key, hp):\n    {line}"))
    assert main(["run", "mine.py"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "Mark it static" in error
    assert error.endswith("In the compile group of method='sgd'.")


def test_a_reader_that_stops_is_no_error():
    command = [sys.executable, "-m", "jaxlr", "list", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0


def test_interrupt_says_how_to_resume_and_exits_130(mine, capsys, monkeypatch):
    def sweep(*_, **__):
        raise KeyboardInterrupt("Go on with `--resume`.")

    monkeypatch.setitem(vars(lab), "sweep", sweep)
    assert main(["run", "mine.py"]) == 130
    assert capsys.readouterr().err == "Go on with `--resume`.\n"


def test_resume_takes_the_newest_unfinished_run(mine, capsys, swept):
    for name, is_judged in (
        ("20250101", False),
        ("20250103", True),
        ("20250102", False),
    ):
        directory = Path("runs/mine") / name
        directory.mkdir(parents=True)
        if is_judged:
            (directory / "claims.json").write_text("[]")
    _, _, arguments = swept("mine.py", "--resume", "--force")
    assert arguments["directory"] == Path("runs/mine/20250102")
    assert arguments["resume"] == "force"
    assert "Resuming runs/mine/20250102" in capsys.readouterr().out
    assert swept("mine.py", "--resume")[2]["resume"] is True


def test_resuming_for_real(mine, capsys):
    assert main(["run", "mine.py", "--chunk", "1"]) == 0
    directory = only_run()
    want = lab.load(directory)
    sorted((directory / "chunks").iterdir())[0].unlink()
    (directory / "claims.json").unlink()
    assert main(["run", "mine.py", "--resume", "--chunk", "1"]) == 0
    assert want.equals(lab.load(directory))
    assert main(["run", "mine.py", "--directory", str(directory)]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            "figure=lambda r: 1 / 0",
            "Figure: ZeroDivisionError: division by zero (mine.py,",
        ),
        ("figure=lambda r: 3", "`figure` must return a matplotlib Figure, got int"),
    ],
)
def test_a_broken_figure_keeps_results_and_claims(mine, capsys, broken, message):
    mine.write_text(MINE.replace("    claims=claims,", f"    claims=claims, {broken},"))
    assert main(["run", "mine.py"]) == 3
    text, error = capsys.readouterr()
    assert message in error
    assert "holds" in text
    assert "figure.png" not in text
    assert (only_run() / "claims.json").exists()


def test_broken_claims_keep_the_results_and_the_figure(mine, capsys):
    mine.write_text(MINE.replace('results["last"]', 'results["lost"]'))
    assert main(["run", "mine.py"]) == 3
    text, error = capsys.readouterr()
    assert "Claims: KeyError" in error
    assert "(mine.py, line 32)" in error
    assert "figure.png" in text
    assert not (only_run() / "claims.json").exists()  # so that --resume judges again
    mine.write_text(MINE)
    assert main(["run", "mine.py", "--resume", "--force"]) == 0


def test_a_pyplot_figure_is_drawn_and_closed(mine):
    figure = "__import__('matplotlib.pyplot').pyplot.figure()"
    mine.write_text(MINE.replace("claims=claims,", f"figure=lambda r: {figure},"))
    from matplotlib import pyplot as plt

    assert main(["run", "mine.py"]) == 0
    assert plt.get_fignums() == []
    assert (only_run() / "figure.png").exists()


def test_show_draws_again_without_running(mine, capsys, monkeypatch):
    assert main(["run", "mine.py"]) == 0
    directory = only_run()
    (directory / "figure.png").unlink()
    capsys.readouterr()
    monkeypatch.setitem(vars(lab), "sweep", None)
    assert main(["show", str(directory)]) == 0
    text = capsys.readouterr().out
    for word in ("Provenance", "jaxlr", "it decays", "holds", "figure.png"):
        assert word in text
    assert (directory / "figure.png").exists()
    mine.rename("moved.py")
    assert main(["show", str(directory)]) == 0
    assert main(["show", str(directory), "--experiment", "moved.py"]) == 0


def test_show_of_an_unfinished_run_says_so_and_leaves_it_unfinished(mine, capsys):
    assert main(["run", "mine.py", "--chunk", "1"]) == 0
    directory = only_run()
    sorted((directory / "chunks").iterdir())[0].unlink()
    (directory / "claims.json").unlink()
    assert main(["show", str(directory)]) == 1  # NaN is not below 0.1
    assert "The run is unfinished" in capsys.readouterr().out
    assert not (directory / "claims.json").exists()


def test_replay_compares(mine, capsys):
    assert main(["run", "mine.py"]) == 0
    words = [
        "replay",
        str(only_run()),
        "--cell",
        "eta=0.25",
        "method=sgd",
        "--seed",
        "1",
    ]
    capsys.readouterr()
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "bit" in text
    assert "error" in text
    assert main([*words, "--experiment", "mine.py"]) == 0
    words[3:5] = ["eta=0.3"]
    assert main(["replay", str(only_run()), "--cell", "eta=0.3", "method=gd"]) == 2
    assert "0.25, 0.5" in capsys.readouterr().err


def test_replay_says_when_it_differs(monkeypatch, capsys):
    import xarray as xr

    def replay(run, cell, seed, *, experiment):
        assert (run, cell, seed) == (Path("r"), {"num_columns": 2, "m": "x"}, 0)
        return xr.Dataset({"a": 1.0}, attrs={"replay": "NOT equal.", "is_equal": 0})

    monkeypatch.setitem(vars(lab), "replay", replay)
    assert main(["replay", "r", "--cell", "num-columns=2", "m=x"]) == 1
    assert "NOT equal." in capsys.readouterr().out


def reproduced():
    """The run directories of the last `reproduce`, by experiment."""
    root = max(Path("runs/reproduce/smoke").iterdir())
    return {path.name.rpartition("-")[0]: path for path in root.iterdir()}


def test_reproduce_judges_all_and_goes_on_after_an_error(tmp_path, mine, capsys):
    Path("broken.py").write_text(MINE.replace("return {", "return 1 / 0, {"))
    Path("long.py").write_text(LONG)
    names = ["broken.py", "mine.py", "long.py"]
    assert main(["reproduce", "--smoke", *names]) == 3
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any("broken.py ZeroDivisionError" in line for line in lines)
    assert any("mine.py it decays <= 0.1" in line and "holds" in line for line in lines)
    assert "long.py makes no claims" in lines
    assert main(["reproduce", "--smoke", *names[1:]]) == 0
    assert dict(lab.load(reproduced()["mine"]).sizes)["step"] == 10
    mine.write_text(MINE.replace("high=0.1", "high=1e-9"))
    assert main(["reproduce", "--smoke", "mine.py"]) == 1


def test_reproduce_says_each_verdict_as_it_falls(tmp_path, mine, capsys, monkeypatch):
    Path("long.py").write_text(LONG)
    seen, sweep = [], lab.sweep

    def sweep_and_look(*args, **kwargs):
        seen.append(capsys.readouterr().out)
        return sweep(*args, **kwargs)

    monkeypatch.setitem(vars(lab), "sweep", sweep_and_look)
    assert main(["reproduce", "--smoke", "mine.py", "long.py"]) == 0
    assert seen[0].startswith("1 of 2  mine.py: runs/reproduce/smoke/")
    assert "  holds  it decays" in seen[1]
    assert "2 of 2  long.py" in seen[1]


def test_reproduce_stopped_says_what_it_knows_and_goes_on(mine, capsys, monkeypatch):
    Path("long.py").write_text(LONG)
    calls, sweep = [], lab.sweep

    def stop_in_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(vars(lab), "sweep", stop_in_the_second)
        assert main(["reproduce", "--smoke", "mine.py", "long.py"]) == 130
    text, error = capsys.readouterr()
    assert text.count("it decays") == 2  # as it fell, and in the table
    hint = "jaxlr reproduce --resume --smoke mine.py long.py"
    assert error == f"Stopped in 2 of 2. Go on with `{hint}`.\n"
    kept = {p: p.stat().st_ino for p in reproduced()["mine"].glob("chunks/*.npz")}
    assert kept
    assert main(hint.split()[1:]) == 0
    assert {
        p: p.stat().st_ino for p in reproduced()["mine"].glob("chunks/*.npz")
    } == kept
    assert lab.load(reproduced()["long"]).attrs["is_complete"]
    assert len(list(Path("runs/reproduce/smoke").iterdir())) == 1
    assert main(["reproduce", "--resume", "mine.py"]) == 2
    assert "nothing in runs/reproduce/full to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_reproduce_in_a_process_is_stopped_by_ctrl_c_and_goes_on(mine, tmp_path):
    """While the second is under way: what is known is printed, and nothing is lost."""
    Path("slow.py").write_text(LONG.replace("num_steps=8", "num_steps=10**9"))
    code = "import os, signal, sys\nfrom jaxlr.lab.cli import main\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"os.chdir({str(tmp_path)!r})\nsys.exit(main({{words}}))"
    words = ["reproduce", "mine.py", "slow.py"]
    process = toys.start(code.format(words=words))
    assert process.stdout is not None
    shown = []
    while not any("2 of 2" in line for line in shown):
        shown.append(process.stdout.readline())
        assert shown[-1], process.communicate()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "  holds  it decays" in "".join(shown)
    assert "it decays" in out
    hint = "jaxlr reproduce --resume mine.py slow.py"
    assert error.splitlines()[-1] == f"Stopped in 2 of 2. Go on with `{hint}`."
    (root,) = Path("runs/reproduce/full").iterdir()
    (chunk,) = root.glob("mine-*/chunks/g000-*.npz")
    inode = chunk.stat().st_ino
    words = ["reproduce", "--resume", "mine.py"]
    assert "it decays" in toys.finish(toys.start(code.format(words=words)))
    assert chunk.stat().st_ino == inode


def test_reproduce_tells_files_of_one_name_apart(tmp_path, capsys):
    """Each has its own helper, and its own run directory."""
    for folder, value in (("a", 6), ("b", 600)):
        path = tmp_path / folder / "one.py"
        path.parent.mkdir()
        path.write_text(
            "import helper\n"
            + MINE.replace('results["last"]', "helper.VALUE")
            .replace("high=0.1", f"low={value}, high={value}")
            .replace(
                "return [",
                "import late\n    assert late.VALUE == helper.VALUE\n    return [",
            )
        )
        (path.parent / "helper.py").write_text(f"VALUE = {value}")
        (path.parent / "late.py").write_text(f"VALUE = {value}")
    assert main(["reproduce", "--smoke", "a/one.py", "b/one.py"]) == 0
    assert capsys.readouterr().out.count("  holds  it decays") == 2
    assert len(list(Path("runs/reproduce/smoke").glob("*/one-*"))) == 2


@pytest.mark.parametrize("bound", ["0.1", "1e-9"])
def test_the_exit_status_comes_from_verdicts_not_from_a_table(
    mine, capsys, monkeypatch, bound
):
    """Whatever the table's columns are, a failing claim exits 1."""
    from jaxlr.lab import report

    mine.write_text(MINE.replace("high=0.1", f"high={bound}"))
    monkeypatch.setattr(report, "claims_table", lambda judgements: "no table at all")
    status = int(bound == "1e-9")
    assert main(["run", "mine.py"]) == status
    assert main(["show", str(only_run())]) == status
    assert main(["reproduce", "--smoke", "mine.py"]) == status
    assert capsys.readouterr().out.endswith("no table at all\n")


def test_verdicts():
    good, bad = (Claim("c", 1.0, high=high) for high in (2.0, 0.0))
    assert lab.Judgement("x").status == 0
    assert lab.Judgement("x", (good,)).status == 0
    assert lab.Judgement("x", (good, bad)).status == 1
    assert lab.Judgement("x", (good, bad), ("no figure",)).status == 3


def test_reproduce_without_names_takes_all_shipped(monkeypatch, mine, capsys):
    monkeypatch.setattr(find, "names", lambda: {"mine.py": mine})
    assert main(["reproduce"]) == 0
    assert "it decays" in capsys.readouterr().out


def test_list_names_every_shipped_experiment(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name, path in find.names().items():
        assert name in text
        assert find.summary(path)[:60] in text


def test_doctor_succeeds(capsys):
    assert main(["doctor"]) == 0
    assert jaxlr.__version__ in capsys.readouterr().out


def test_no_command_is_help_and_a_wrong_one_is_misuse(capsys):
    for words, code in (([], 0), (["--help"], 0), (["run"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    text = " ".join(capsys.readouterr().out.split())
    assert "reproduce" in text
    assert "Exit status: 0 if all is well; 1 if a claim fails" in text
    assert main(["runn"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Unknown command 'runn'; did you mean 'run'? valid: list,")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxlr {jaxlr.__version__}\n"


@pytest.mark.aot
def test_compile_prints_memory_in_32_bit_types(mine, capsys):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    mine.write_text(MINE.replace("num_seeds=2,", "num_seeds=2, x64=True,"))
    assert main(["compile", "mine.py", "--target", "v5e", "--smoke"]) == 0
    text = capsys.readouterr().out
    for word in (
        "TPU v5e",
        "arguments",
        "temporaries",
        "15.75 GiB",
        "fits",
        "32-bit here",
    ):
        assert word in text


@pytest.mark.aot
def test_compile_says_what_does_not_fit_or_compile(mine, capsys):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    huge = "x = jr.normal(key, (300_000, 300_000)) * hp.eta; error = (x @ x)[0]"
    for line, message in (
        (huge, "Does not fit TPU v5e"),
        ("error = jnp.linalg.eigvals(jnp.eye(9)).real * hp.eta", "does not compile"),
    ):
        body = MINE.replace("error = (1 - hp.eta) ** jnp.arange(hp.num_steps)", line)
        mine.write_text(body)
        assert main(["compile", "mine.py", "--target", "v5e"]) == 1
        assert message in capsys.readouterr().err


def start(*words):
    """The modules that a fresh process imports."""
    code = f"import sys\nsys.argv = ['jaxlr', *{words!r}]\n" + (
        "from jaxlr.lab.cli import main\n"
        "try:\n    status = main()\nexcept SystemExit as e:\n    status = e.code\n"
        "assert not status, status\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["list"], ["run", "--help"], ["plan", "--help"]],
)
def test_help_and_list_import_nothing_heavy(words):
    heavy = {"jax", "jaxlib", "numpy", "xarray", "matplotlib", "equinox", "filelock"}
    assert not start(*words) & heavy


def test_python_m_jaxlr():
    words = [sys.executable, "-m", "jaxlr", "list"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    assert next(iter(find.names())) in done.stdout


def test_flags_of_every_shipped_experiment_parse():
    for name in find.names():
        request = flags.parse([name, "--smoke"])
        assert request.experiment.name == name

"""The command line, from words to exit status."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

import jaxlr
from jaxlr import lab
from jaxlr.lab import find
from jaxlr.lab.cli import commands, main
from tests.lab._files import MINE, only_run


pytestmark = pytest.mark.usefixtures("away")
ROOT = Path(__file__).resolve().parents[2]


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

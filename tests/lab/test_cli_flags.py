"""Flags of the command line: from words to what a sweep is asked for."""

import json
from pathlib import Path

import pytest

from jaxlr import lab
from jaxlr.lab import find
from jaxlr.lab.cli import commands, flags, main
from tests.lab._files import LONG, MINE, only_run


pytestmark = pytest.mark.usefixtures("away")
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


def test_flags_of_every_shipped_experiment_parse():
    for name in find.names():
        request = flags.parse([name, "--smoke"])
        assert request.experiment.name == name

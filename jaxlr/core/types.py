"""The shapes that everything in jaxlr has. Floor 0: imports nothing of jaxlr."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Key, Num, PyTree
import numpy as np
import numpy.typing as npt

from jaxlr.core import checks


Hyper: TypeAlias = float | Float[Array, ""]
"""A hyper-parameter: a number or a traced scalar, so that sweeping it is free."""


Count: TypeAlias = int | float | Num[Array, ""]
"""A number of things that may be a traced scalar."""


class Solver(NamedTuple):
    """An iterative method as pure functions; `jaxlr.core.loop` drives it.

    Attributes:
        init: `init(key) -> state`.
        step: `step(key, state) -> (state, info)`. Both are pytrees of arrays whose
            shapes do not change from step to step; `info` describes the state that
            came in, so the first info describes `init`.
        has_ended: `has_ended(state) -> bool`, or None for a method that runs to its
            step budget. A lane that has ended is frozen.
    """

    init: Callable[[Key[Array, ""]], Any]
    step: Callable[[Key[Array, ""], Any], tuple[Any, Any]]
    has_ended: Callable[[Any], Bool[Array, ""]] | None = None


@dataclasses.dataclass(frozen=True)
class Uniform:
    """`num` draws from the uniform distribution on [low, high): a sampled axis.

    Attributes:
        low: Smallest value, in the units of the swept field.
        high: Largest value.
        num: Number of draws.
        seed: Integer >= 0; the draws depend on it and on the field's name alone.

    Raises:
        ValueError: Unless `low < high`, both finite, `num >= 1` and `seed >= 0`.
    """

    low: float
    high: float
    num: int
    seed: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"`low` and `high` must be finite, got {self}.")
        if self.low >= self.high:
            raise ValueError(f"`low` must be less than `high`, got {self}.")
        object.__setattr__(self, "num", checks.count("num", self.num))
        object.__setattr__(self, "seed", checks.count("seed", self.seed, least=0))

    def draw(self, name: str) -> tuple[float, ...]:
        """The values for the field called `name`: `num` floats."""
        rng = np.random.default_rng([self.seed, *name.encode()])
        return tuple(rng.uniform(self.low, self.high, self.num).tolist())


@dataclasses.dataclass(frozen=True)
class LogUniform(Uniform):
    """`num` draws whose logarithm is uniform on [log low, log high).

    Attributes and errors are those of `Uniform`; also a `ValueError` if `low <= 0`.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"`low` must be positive for a log axis, got {self.low}.")

    def draw(self, name: str) -> tuple[float, ...]:
        """The values for the field called `name`: `num` floats."""
        logs = Uniform(math.log(self.low), math.log(self.high), self.num, self.seed)
        return tuple(math.exp(x) for x in logs.draw(name))


class Axis(NamedTuple):
    """One sweep axis.

    Attributes:
        name: The HParams field that it sweeps, or a tuple of fields moving together.
        values: Numbers or strings; for a tuple of fields, tuples of such. A
            `Uniform` or `LogUniform` draws them; a tuple of those, one a field, draws
            points of a random search.
    """

    name: str | tuple[str, ...]
    values: Sequence[Any] | Uniform | npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A prediction, what was measured, and the verdict.

    Attributes:
        statement: What is claimed, as a sentence.
        measured: One number or many; the claim is about every one of them.
        low: Smallest value at which the claim holds.
        high: Largest value at which the claim holds.
        source: Where the prediction comes from: a theorem, a paper's equation.

    Raises:
        ValueError: If nothing was measured, or if no bound is finite: such a claim
            could not be false.
    """

    statement: str
    measured: npt.ArrayLike
    low: float = -math.inf
    high: float = math.inf
    source: str = ""

    def __post_init__(self):
        values = np.asarray(self.measured, np.float64).ravel()
        if not values.size:
            raise ValueError(f"The claim {self.statement!r} has nothing measured.")
        if not (math.isfinite(self.low) or math.isfinite(self.high)):
            raise ValueError(f"The claim {self.statement!r} needs a finite bound.")
        object.__setattr__(self, "measured", values)

    @property
    def holds(self) -> bool:
        """Whether every measured number lies in [low, high]; NaN does not."""
        values = np.asarray(self.measured)
        return bool(np.all((self.low <= values) & (values <= self.high)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What an experiment file exports, under the name `EXPERIMENT`.

    `run` and `hparams` are enough; `solver` and `num_steps` in place of `run` make a
    long run, advanced in segments that are checkpointed.

    Attributes:
        hparams: A frozen dataclass (an `eqx.Module`), one cell's hyper-parameters.
            Fields marked static fix shapes; all others may be traced.
        run: `run(key, hparams) -> metrics`, pure; metrics are a dict, NamedTuple or
            `eqx.Module` of arrays: scalars, and curves over steps.
        solver: `solver(key, hparams) -> Solver`; its infos are the metrics. It is
            called anew at the start of every segment, so that its data need not be
            kept with the state.
        num_steps: Length of a long run, or `num_steps(hparams)` from static fields.
        axes: The sweep that answers the question: name -> values, or `Axis` tuples.
        num_seeds: Independent repetitions of every cell.
        x64: Whether to trace under 64-bit types.
        every: A long run keeps one info in `every` steps; a `run` that thins its own
            curves says so here, to label them.
        checkpoint_seconds: Time between two checkpoints of a long run.
        smoke: Fields replaced by `--smoke`: a size that runs in seconds, at settings
            where the claims hold too.
        dims: Metric name -> names of its dimensions, where the default does not fit:
            `step` for a curve, `<metric>_dim_<i>` for the rest.
        claims: `claims(results) -> list[Claim]`.
        figure: `figure(results) -> matplotlib Figure`.
        name: Set by whatever finds the experiment; empty stands for its function's.

    Raises:
        ValueError: If not exactly one of `run` and `solver` is given, if `num_steps`
            is missing or superfluous, or if a count is not positive.
    """

    hparams: Any
    run: Callable[[Key[Array, ""], Any], PyTree] | None = None
    solver: Callable[[Key[Array, ""], Any], Solver] | None = None
    num_steps: int | Callable[[Any], int] | None = None
    axes: Mapping[Any, Any] | Sequence[Axis] = ()
    num_seeds: int = 1
    x64: bool = False
    every: int = 1
    checkpoint_seconds: float = 30.0
    smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    claims: Callable[[Any], list[Claim]] | None = None
    figure: Callable[[Any], Any] | None = None
    name: str = ""

    def __post_init__(self):
        if (self.run is None) == (self.solver is None):
            raise ValueError("An Experiment needs `run` or `solver`, and not both.")
        if (self.solver is None) != (self.num_steps is None):
            raise ValueError("`solver` and `num_steps` go together, `run` needs none.")
        if isinstance(self.hparams, type) or not dataclasses.is_dataclass(self.hparams):
            raise ValueError(
                "`hparams` must be an instance of a dataclass, such as an eqx.Module, "
                f"got {self.hparams!r}."
            )
        if not (self.num_steps is None or callable(self.num_steps)):
            num_steps = checks.count("num_steps", self.num_steps)
            object.__setattr__(self, "num_steps", num_steps)
        for name in ("num_seeds", "every"):
            number = checks.count(name, getattr(self, name))
            object.__setattr__(self, name, number)
        if not self.checkpoint_seconds >= 0:
            raise ValueError(
                f"`checkpoint_seconds` must be >= 0, got {self.checkpoint_seconds!r}."
            )
        fields = {f.name for f in dataclasses.fields(self)}
        if unknown := set(self.smoke) - fields:
            raise ValueError(
                f"`smoke` replaces fields of Experiment; {sorted(unknown)} are none."
            )

    @property
    def function(self) -> Callable[..., Any]:
        """`run` or `solver`, whichever was given."""
        return self.run or self.solver  # pyright: ignore[reportReturnType]

    def replace(self, **changes: Any) -> "Experiment":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

"""What the terminal shows: tables, errors, JSON."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
import re
import sys
from typing import Any, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


if TYPE_CHECKING:
    import xarray as xr

    from jaxlr.core import Claim
    from jaxlr.lab.aot import Compilation
    from jaxlr.lab.judging import Judgement

_NARROW = 60  # columns below which a table that does not fit is a list
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console(*, is_error: bool = False) -> Console:
    """A console; wide, and without escape codes, where there is no terminal."""
    stream = sys.stderr if is_error else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, width=120, force_terminal=False, highlight=False)


def error(message: str) -> None:
    """Print one red line on stderr, unbroken so that it can be searched and copied."""
    console(is_error=True).print(literal(message, "red"), soft_wrap=True)


def literal(text: Any, style: str = "") -> Text:
    """Text as it is; what would control the terminal is spelled out."""
    return Text(_CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text)), style)


def to_json(content: Mapping[str, Any]) -> str:
    """Strict JSON: what is not finite is null, what has no form there is a string."""

    def plain(value):
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(x) for x in value]
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if isinstance(value, int | str | None) else str(value)

    return json.dumps(plain(content), allow_nan=False)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table; on a narrow terminal, where it does not fit, a list of its rows.

    Attributes:
        columns: Names of the columns; of none, there is no header.
        rows: Cells: texts.
        title: Title, or "".
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    title: str

    def __rich_console__(self, console, options):
        table = Table(
            title=self.title or None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=any(self.columns),
        )
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        width = options.max_width
        unbounded = options.update(max_width=10_000)
        wanted = console.measure(table, options=unbounded).maximum
        if width >= min(wanted, _NARROW):
            yield table
            return
        if self.title:
            yield Text(f"{self.title}\n", "italic")
        for first, *rest in self.rows:
            yield first
            for column, cell in zip(self.columns[1:], rest, strict=True):
                if cell.plain:
                    lead = f"{column}: " if column else ""
                    yield Padding(Text.assemble(lead, cell), (0, 0, 0, 2))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = ""
) -> Sheet:
    """A plain table; cells are text, taken literally, or `rich` texts."""
    cells = (
        tuple(x if isinstance(x, Text) else literal(x) for x in row) for row in rows
    )
    return Sheet(tuple(columns), tuple(cells), title)


def claims_table(judgements: Sequence["Judgement"], title: str = "Claims") -> Sheet:
    """Every claim with its verdict, and every problem.

    Args:
        judgements: What is known of each experiment. Several are told apart by name.
        title: Title of the table.
    """
    columns = ("experiment", "claim", "predicted", "measured", "verdict", "source")
    rows: list[tuple[Any, ...]] = []
    for judgement in judgements:
        cells = [claim_row(claim) for claim in judgement.claims]
        cells += [(x, "", "", failure("error"), "") for x in judgement.problems]
        cells = cells or [("makes no claims", "", "", "", "")]
        rows += [(judgement.name, *row) for row in cells]
    if len(judgements) == 1:
        columns, rows = columns[1:], [row[1:] for row in rows]
    return table(columns, rows, title)


def verdicts(judgement: "Judgement") -> list[Text]:
    """A line for every claim, and for every problem."""
    lines = [
        Text.assemble("  ", claim_row(claim)[3], "  ", literal(claim.statement))
        for claim in judgement.claims
    ]
    lines += [
        Text.assemble("  ", failure("error"), "  ", literal(problem))
        for problem in judgement.problems
    ]
    return lines or [Text("  makes no claims")]


def claim_row(claim: "Claim") -> tuple[Any, ...]:
    """Statement, predicted and measured range, verdict and source, as cells."""
    verdict = Text("holds", "green") if claim.holds else failure("fails")
    return claim.statement, predicted(claim), measured(claim), verdict, claim.source


def failure(word: str) -> Text:
    """A verdict that nobody overlooks."""
    return Text(word, "bold red")


def predicted(claim: "Claim") -> str:
    """`1 to 2`, `<= 2`, `>= 1` or `1`."""
    low, high = claim.low, claim.high
    if low == high:
        return f"{low:.4g}"
    if math.isinf(low):
        return f"<= {high:.4g}"
    if math.isinf(high):
        return f">= {low:.4g}"
    return f"{low:.4g} to {high:.4g}"


def measured(claim: "Claim") -> str:
    """`1.5`, or `1.2 to 1.7 (8 values)`; NaN is counted."""
    import numpy as np

    values = np.asarray(claim.measured)
    known = values[~np.isnan(values)]
    num_nan = values.size - known.size
    parts = []
    if known.size:
        low, high = (f"{x:.4g}" for x in (known.min(), known.max()))
        parts.append(low if low == high else f"{low} to {high}")
    if num_nan:
        parts.append(f"{num_nan} NaN")
    return ", ".join(parts) + (f" ({values.size} values)" if values.size > 1 else "")


def attributes_table(attributes: Mapping[str, Any], title: str = "Provenance") -> Sheet:
    """Names and values."""
    return table(("", ""), attributes.items(), title)


def compilation_table(compilation: "Compilation", title: str) -> Sheet:
    """What a compiled program takes of a chip's memory."""
    from jaxlr.lab.memory import format_bytes

    parts = {
        "arguments": compilation.arguments,
        "outputs": compilation.outputs,
        "aliased": -compilation.aliased,
        "temporaries": compilation.temporaries,
        "generated code": compilation.generated_code,
        "total": compilation.total,
    }
    rows: list[tuple[Any, ...]] = [
        (name, format_bytes(number), f"{100 * number / compilation.hbm:.3g} %")
        for name, number in parts.items()
        if number or name != "aliased"
    ]
    verdict = Text("fits", "green") if compilation.fits else failure("does not fit")
    rows.append(("HBM", format_bytes(compilation.hbm), verdict))
    return table((compilation.chip, "bytes", "of HBM"), rows, title)


def metrics_table(results: "xr.Dataset", title: str = "Metrics") -> Sheet:
    """First and last value of every metric of a single cell and seed."""
    rows = []
    for name, metric in ends(results).items():
        shape = " x ".join(f"{n} {d}" for d, n in metric["sizes"].items() if n > 1)
        rows.append((name, shape, metric["first"], metric["last"] if shape else ""))
    return table(("metric", "shape", "first", "last"), rows, title)


def ends(results: "xr.Dataset") -> dict[str, dict[str, Any]]:
    """Sizes, first and last value of every metric of a single cell and seed."""
    return {
        str(name): {
            "sizes": dict(variable.sizes),
            "first": variable.values.flat[0] if variable.size else None,
            "last": variable.values.flat[-1] if variable.size else None,
        }
        for name, variable in results.data_vars.items()
    }

"""Tables for the terminal: experiments, claims, provenance, measurements."""

from collections.abc import Iterable, Mapping, Sequence
import math
import sys
from typing import Any, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


if TYPE_CHECKING:
    import xarray as xr

    from jaxlr.core import Claim
    from jaxlr.lab.aot import Compilation
    from jaxlr.lab.judging import Judgement


def console(*, is_error: bool = False) -> Console:
    """A console; wide where nobody's terminal sets the width."""
    stream = sys.stderr if is_error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False)


def error(message: str) -> None:
    """Print one red line on stderr, unbroken so that it can be searched and copied."""
    console(is_error=True).print(Text(message, "red"), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = ""
) -> Table:
    """A plain table; cells are text, taken literally, or `rich` texts."""
    made = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
    )
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(x if isinstance(x, Text) else Text(str(x)) for x in row))
    return made


def claims_table(judgements: Sequence["Judgement"], title: str = "Claims") -> Table:
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


def attributes_table(attributes: Mapping[str, Any], title: str = "Provenance") -> Table:
    """Names and values."""
    return table(("", ""), attributes.items(), title)


def compilation_table(compilation: "Compilation", title: str) -> Table:
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


def metrics_table(results: "xr.Dataset", title: str = "Metrics") -> Table:
    """First and last value of every metric of a single cell and seed."""
    import numpy as np

    rows = []
    for name, variable in results.data_vars.items():
        values = np.ravel(variable.values)
        first, last = (str(x) for x in (values[0], values[-1]))
        shape = " x ".join(f"{n} {d}" for d, n in variable.sizes.items() if n > 1)
        rows.append((name, shape, first, last if values.size > 1 else ""))
    return table(("metric", "shape", "first", "last"), rows, title)

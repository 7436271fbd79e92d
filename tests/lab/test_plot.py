"""The default figure: what is drawn, against what."""

import matplotlib as mpl
from matplotlib.figure import Figure
import numpy as np
import pytest
import xarray as xr

from jaxlr.lab import plot


mpl.use("Agg")


def dataset(curve=True, num_eta=3, **more):
    rng = np.random.default_rng(0)
    shape = {"eta": num_eta, "method": 2, "seed": 5, "step": 7}
    curves = np.exp(-rng.uniform(0, 9, tuple(shape.values())))
    data: dict = {"last": (("eta", "method", "seed"), curves[..., -1])}
    if curve:
        notes = {"long_name": "Relative error", "units": "m"}
        data["error"] = (tuple(shape), curves, notes)
        data["matrix"] = ((*shape, "matrix_dim_1"), np.ones((*curves.shape, 2)))
    data["diverged_at"] = (("eta", "method", "seed"), np.zeros(curves.shape[:3], int))
    coords = {
        "eta": ("eta", np.geomspace(1e-3, 1, num_eta), {"units": "1/L"}),
        "method": ["gd", "sgd"],
        "seed": np.arange(5),
    }
    return xr.Dataset(data | more, coords, {"experiment": "toy"})


def drawn(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    return [axes for axes in figure.axes if axes.axison]


def test_curves_are_medians_over_seeds_against_the_step(tmp_path):
    results = dataset()
    (axes,) = drawn(plot.default_figure(results), tmp_path)
    assert axes.get_title() == "error"
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "Relative error [m]"
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert len(lines) == 6
    assert next(iter(lines)) == "eta=0.001, method=gd"
    want = results["error"].sel({"eta": 1, "method": "sgd"}).median("seed")
    np.testing.assert_allclose(np.array(lines["eta=1, method=sgd"]), want)
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    band = results["error"].isel(eta=0, method=0).quantile([0.1, 0.9], "seed")
    np.testing.assert_allclose((low, high), (band[0].min(), band[1].max()))


def test_scalars_are_drawn_against_the_first_numeric_axis(tmp_path):
    results = dataset(curve=False)
    for order in (("eta", "method"), ("method", "eta")):
        turned = results.transpose(*order, "seed")
        (axes,) = drawn(plot.default_figure(turned), tmp_path)
        assert axes.get_xlabel() == "eta [1/L]"
        assert axes.get_xscale() == "log"
        assert [x.get_label() for x in axes.get_lines()] == ["method=gd", "method=sgd"]
        want = results["last"].sel({"method": "gd"}).median("seed")
        np.testing.assert_allclose(np.array(axes.get_lines()[0].get_ydata()), want)


def test_values_of_a_random_search_are_drawn_in_order(tmp_path):
    results = dataset(curve=False)
    figures = [results, results.isel(eta=[1, 2, 0])]
    lines = [drawn(plot.default_figure(r), tmp_path)[0].get_lines()[0] for r in figures]
    np.testing.assert_array_equal(lines[0].get_xydata(), lines[1].get_xydata())


def test_many_cells_and_metrics_are_thinned_and_said_so(tmp_path):
    results = dataset(num_eta=30)
    results = results.assign({f"m{i}": results["error"] for i in range(14)})
    figure = plot.default_figure(results)
    axes = drawn(figure, tmp_path)
    assert len(axes) == plot.MAX_PANELS
    assert len(axes[0].get_lines()) == plot.MAX_LINES
    title = figure.get_suptitle()
    assert "12 of 60 lines" in title
    assert "12 of 15 metrics" in title
    labels = [line.get_label() for line in axes[0].get_lines()]
    assert labels[0] == "eta=0.001, method=gd"
    assert labels[-1] == "eta=1, method=sgd"


def test_only_words_on_the_axis(tmp_path):
    results = dataset(curve=False).isel(eta=0, drop=True)
    (axes,) = drawn(plot.default_figure(results), tmp_path)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["gd", "sgd"]


def test_fields_that_move_together_label_one_axis(tmp_path):
    fields = {"beta": [0.5, 0.25, 0.125], "gamma": [7, 8, 9]}
    coords = {"beta_gamma": [0, 1, 2]} | {
        k: ("beta_gamma", v) for k, v in fields.items()
    }
    data = {"last": (("beta_gamma", "seed"), np.ones((3, 2)))}
    results = xr.Dataset(data, coords)
    (axes,) = drawn(plot.default_figure(results), tmp_path)
    assert axes.get_xlabel() == "beta"
    curves = {"loss": (("beta_gamma", "seed", "step"), np.ones((3, 2, 4)))}
    (axes,) = drawn(plot.default_figure(xr.Dataset(curves, coords)), tmp_path)
    assert axes.get_lines()[0].get_label() == "beta=0.5, gamma=7"


def test_nothing_swept_one_seed_nan_and_complex(tmp_path):
    values = np.array([[1.0, np.nan, np.inf]])
    results = xr.Dataset(
        {
            "loss": (("seed", "step"), values),
            "all_nan": (("seed", "step"), values * np.nan),
            "phase": (("seed", "step"), np.array([[1j, 2, 3j]])),
        },
        {"seed": [0]},
    )
    axes = drawn(plot.default_figure(results), tmp_path)
    assert [panel.get_title() for panel in axes] == ["loss", "all_nan", "phase"]
    one = xr.Dataset({"last": ("seed", [3.0, 4.0])}, {"seed": [0, 1]})
    (panel,) = drawn(plot.default_figure(one), tmp_path)
    np.testing.assert_allclose(np.array(panel.get_lines()[0].get_ydata()), [3.5])


def test_what_is_an_axis():
    results = dataset()
    names = ("eta", "method", "seed", "step", "matrix_dim_1")
    assert [plot.is_axis(results, name) for name in names] == [1, 1, 0, 0, 0]


@pytest.mark.misuse
def test_nothing_to_draw():
    results = dataset(curve=False).drop_vars("last")
    with pytest.raises(ValueError, match="give the experiment a figure"):
        plot.default_figure(results)


def test_a_line_is_the_median_of_the_seeds_and_its_band_their_range():
    axes = Figure().subplots()
    curves = dataset()["error"].isel(eta=0, method=0)
    curves = curves.where(curves["step"] < curves.sizes["step"] - 1)  # padding
    plot.draw_seeds(axes, curves, color="red", label="mine")
    (line,), (band,) = axes.get_lines(), axes.collections
    kept = curves.isel(step=slice(-1))
    assert line.get_label() == "mine"
    np.testing.assert_array_equal(line.get_xdata(), kept["step"])
    np.testing.assert_allclose(line.get_ydata(), kept.median("seed"))
    low, high = band.get_paths()[0].get_extents().intervaly
    np.testing.assert_allclose((low, high), (kept.min(), kept.max()))


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(1, 1, (1,)), (1, 3, (3,)), (2, 3, (2, 3))]
)
def test_panels_are_a_row_or_rows_of_axes(rows, columns, shape):
    page, axes = plot.panels(rows, columns, size=(5.0, 3.0), has_shared_y=True)
    assert np.shape(axes) == shape
    assert tuple(page.get_size_inches()) == (5, 3)
    np.ravel(axes)[0].set_ylim(2, 4)
    assert np.ravel(axes)[-1].get_ylim() == (2, 4)
    assert page.get_layout_engine() is not None

"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

import numpy as np

from tests.changes import NAN, plus, times


def later(num_counts):
    """The success of each m moved to that so many counts further on."""
    return lambda x: x.shift(num_measurements=num_counts, fill_value=0.0)


EXACT, WIDE = ({"measurements": "gaussian", "num_columns": k} for k in (3, 5))
NAN_RATE = ({"method": "asymmetric", "seed": 0}, times(np.nan))

WRONG = {
    "completion": {
        "share of seeds": ("error", ({"num_inner": 2}, times(1e12))),
        "sweeps with two": (
            "num_sweeps",
            ({"num_inner": 2}, times(1.3)),
            ({"num_inner": 2}, times(0.7)),
        ),
        "sweeps with one": ("num_sweeps", ({"num_inner": 1}, times(0.7))),
    },
    "completion_photograph": {
        "sketched: PSNR": (
            "recovered_psnr",
            ({"algorithm": "sketched"}, times(0.99)),
            ({"algorithm": "sketched"}, times(1.01)),
        ),
        "exact, k = 16: PSNR lost": (
            "undamped_psnr",
            ({"algorithm": "exact"}, times(1.6)),
        ),
        "exact: PSNR gained": ("recovered_psnr", ({"num_columns": 4}, times(1.1))),
        "soft-impute: PSNR": (
            "recovered_psnr",
            ({"algorithm": "soft_impute"}, times(1.1)),
            ({"algorithm": "soft_impute"}, times(0.9)),
        ),
        "soft-impute: flops": (
            "step_gigaflops",
            ({"algorithm": "soft_impute"}, times(0.4)),
        ),
        "PSNR below": ("reference_psnr", ({"algorithm": "exact"}, times(1.3))),
    },
    "conditioning": {
        "gd: iterations at kappa over kappa": (
            "num_iterations",
            ({"method": "gd", "condition": 10.0}, times(0.4)),
        ),
        "gd: iterations left": ("num_iterations", ({"method": "gd"}, times(3))),
        "PrecGD, k > r: iterations": (
            "num_iterations",
            ({"method": "prec_gd"}, times(1.3)),
        ),
        "ScaledGD(lambda), k > r": (
            "num_iterations",
            ({"method": "scaled_gd"}, times(1.6)),
        ),
        "symmetric, noise, k = r": (
            "squared_error",
            NAN,
            ({"method": "noisy_scaled_gd"}, times(1.3)),
            ({"method": "noisy_scaled_gd"}, times(0.7)),
        ),
        "symmetric, noise, k > r": (
            "squared_error",
            NAN,
            ({"method": "noisy_prec_gd"}, times(2)),
            ({"method": "noisy_prec_gd"}, times(0.4)),
        ),
    },
    "outliers": {
        "SubGM: error, median": ("subgm_final", NAN, ({}, times(30))),
        "SubGM: error of every": ("subgm_final", ({"seed": 0}, times(30))),
        "SubGM: median error with": (
            "subgm_final",
            ({"num_columns": 12}, times(3)),
            ({"num_columns": 12}, times(0.3)),
        ),
        "squares, with outliers": ("l2_final", ({}, times(0.1))),
        "squares, no outliers, k = r": ("l2_final", ({}, times(1e4))),
        "squares, no outliers, k > r": ("l2_final", ({}, times(0.1))),
        "Huber, with outliers": (
            "huber_final",
            ({}, times(0.01)),
            ({}, times(100)),
        ),
        "scale of signs": (
            "sign_scale",
            NAN,
            ({}, times(0.8)),
            ({}, times(1.2)),
        ),
    },
    "overparameterization": {
        "symmetric, k > r: final error": (
            "final_error",
            ({}, times(1.02)),
            ({}, times(0.98)),
        ),
        "symmetric, k > r, alpha": (
            "loss_exponent",
            ({}, times(1.1)),
            ({}, times(0.9)),
        ),
        "symmetric, Gaussian, k = r": ("final_error", (EXACT, plus(1e-3))),
        "symmetric, Gaussian, k > r": ("final_error", (WIDE, times(1e-3))),
        "asymmetric, k > r, alpha <=": (
            "rate",
            NAN_RATE,
            ({"alpha": 0.4}, times(1.1)),
            ({"alpha": 0.4}, times(0.9)),
        ),
        "asymmetric, k > r, alpha =": (
            "rate",
            NAN_RATE,
            ({"alpha": 0.8}, times(1.1)),
            ({"alpha": 0.8}, times(0.9)),
        ),
        "asymmetric, k > r: exponent": (
            "rate",
            NAN_RATE,
            ({"alpha": 0.8}, times(1.5)),
            ({"alpha": 0.8}, times(0.7)),
        ),
        "modified step: rate": ("rate", ({}, times(1.2)), ({}, times(0.8))),
        "modified step, Gaussian": ("linearity", ({}, times(0.6))),
        "modified step: it was": ("rebalanced_at", ({"seed": 0}, times(0))),
        "modified step: it leaves": ("drift", ({}, plus(1e-10))),
    },
    "phase_transition": {
        f"gaussian, {method}: {statement}": ("success", *changes)
        for method in ("gauss_newton", "scaled_gd")
        for statement, *changes in (
            (
                "success rate below",
                ({"method": method, "num_measurements": 10.0}, plus(1)),
            ),
            (
                "m / d",
                ({"method": method}, later(3)),
                ({"method": method}, later(-1)),
                ({"method": method}, times(0.4)),
            ),
            ("success rate from", ({"method": method, "seed": 0}, times(0.0))),
        )
    }
    | {
        "Gaussian: m for a half": ("success", ({"method": "scaled_gd"}, later(-2))),
    },
    "photograph": {
        f"{kind}: PSNR {statement}": (metric, ({"measurements": kind} | where, change))
        for kind, narrow, wide in (("pixels", 20, 64), ("blocks", 4, 16))
        for statement, metric, where, change in (
            ("gained by a larger", "recovered_psnr", {"percent": 50}, times(0.5)),
            ("gained by k", "recovered_psnr", {"num_columns": narrow}, times(2)),
            ("gained by a small", "recovered_psnr", {"alpha": 0.1}, times(2)),
            ("below", "reference_psnr", {}, times(2)),
            ("lost", "psnr", {"num_columns": wide}, times(1.2)),
        )
    },
    "precision": {
        "gaussian: floor in float64": ("floor", ({"precision": "float64"}, times(1e5))),
        "gaussian: floor in float32": ("floor", ({"precision": "float32"}, times(50))),
        "gaussian: floor in bfloat16": (
            "floor",
            ({"precision": "bfloat16"}, times(3)),
            ({"precision": "bfloat16"}, times(0.2)),
        ),
        "gaussian: floor in bfloat16 / formula": (
            "floor",
            NAN,
            ({"precision": "bfloat16"}, times(1.4)),
            ({"precision": "bfloat16"}, times(0.7)),
        ),
        "gaussian: floor with A* alone": (
            "floor",
            ({"precision": "bfloat16 adjoint"}, times(50)),
        ),
        "gaussian: floor of float32": (
            "floor",
            ({"precision": "float32"}, times(1e-7)),
        ),
        "gaussian: floor of bfloat16": (
            "floor",
            ({"precision": "bfloat16"}, times(1e-3)),
        ),
    },
    "quantization": {
        "squared error x efficiency": (
            "error",
            NAN,
            ({"num_levels": 2}, times(1.3)),
            ({"num_levels": 16}, times(0.7)),
        ),
        "scale of the matrix": ("scale", NAN, ({}, times(1.15)), ({}, times(0.85))),
        "scale by the levels": (
            "means_scale",
            NAN,
            ({"num_levels": 2}, times(1.15)),
            ({"num_levels": 2}, times(0.85)),
        ),
    },
    "robust_photograph": {
        "wrong pixels: PSNR gained": ("huber_recovered_psnr", ({}, times(0.9))),
        "PSNR gained by Huber with 30": ("l2_recovered_psnr", ({}, times(1.3))),
        "no wrong pixels: PSNR gained": ("huber_recovered_psnr", ({}, times(0.9))),
        "no wrong pixels, Huber: PSNR below": ("reference_psnr", ({}, times(1.2))),
        "Huber: PSNR lost from one share": (
            "huber_recovered_psnr",
            ({"outlier_share": 0.1}, times(1.5)),
        ),
        "PSNR lost from none": (
            "l2_recovered_psnr",
            ({"outlier_share": 0.0}, times(0.8)),
        ),
        "Huber: PSNR lost by stopping": ("huber_recovered_psnr", ({}, times(0.9))),
        "wrong pixels, Huber: PSNR lost by not": (
            "huber_psnr",
            ({}, lambda x: x.max("step") + 0 * x),
        ),
    },
    "small_initialization": {
        "all entries: power": (
            "least",
            ({"num_measurements": 0, "alpha": 1e-3}, times(1.4)),
            ({"num_measurements": 0, "alpha": 1e-3}, times(0.7)),
        ),
        "Gaussian: power less": (
            "least",
            NAN,
            ({"num_measurements": 1600, "alpha": 1e-3}, times(4)),
            ({"num_measurements": 1600, "alpha": 1e-3}, times(0.25)),
        ),
        "the same, every seed": (
            "least",
            ({"num_measurements": 500, "alpha": 1e-3, "seed": 0}, times(10)),
            ({"num_measurements": 500, "alpha": 1e-3, "seed": 0}, times(0.1)),
        ),
        "power with m = 1600": (
            "least",
            ({"num_measurements": 500, "alpha": 1e-3}, times(3)),
        ),
    },
}

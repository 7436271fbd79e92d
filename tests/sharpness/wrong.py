"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


SGD, SAM = ({"num_shards": 1, "rho": rho} for rho in (0.0, 0.1))
LARGE = {"num_shards": 1, "rho": 0.4}
EXAMPLES, FEW = ({"num_shards": 20, "rho": rho} for rho in (0.1, 0.03))
ONE_SEED = {"seed": 0}
IS_SAM = {"method": "sam"}
CYCLE = {"is_normalized": True, "seed": 0, "rho": 0.03, "eta": 1.0}

WRONG = {
    "bias_variance": {
        "iterates": ("iterate_gap", (ONE_SEED | {"rho": 2.0}, times(1e3))),
        "risk over draws": (
            "risk",
            NAN,
            *(
                ({"problem": problem, "rho": rho, "step": step}, times(factor))
                for problem in ("kernel", "least_squares")
                for rho, step, factor in (
                    (0.0, 1, 1.05),
                    (0.0, 50, 0.95),
                    (2.0, 5, 0.95),
                    (2.0, 20, 1.05),
                )
            ),
        ),
    }
    | {
        f"{problem}{statement}": (
            metric,
            *nan,
            *(({"problem": problem} | where, change) for where, change in changes),
        )
        for problem in ("kernel", "least_squares")
        for statement, metric, nan, *changes in (
            (
                ": squared bias of SAM",
                "squared_bias",
                (),
                ({"rho": 2.0, "step": 1} | ONE_SEED, times(3)),
                ({"rho": 2.0, "step": 199} | ONE_SEED, times(3)),
            ),
            (
                ": variance of SAM",
                "variance",
                (),
                ({"rho": 2.0, "step": 1} | ONE_SEED, times(0.1)),
                ({"rho": 2.0, "step": 199} | ONE_SEED, times(0.9)),
            ),
            (
                ": risk that SAM saves at step 5",
                "squared_bias",
                (NAN,),
                ({"rho": 2.0, "step": 5}, times(4)),
                ({"rho": 0.0, "step": 5}, times(0.5)),
            ),
            (
                ": risk that SAM saves at the last",
                "variance",
                (NAN,),
                ({"rho": 2.0, "step": 199}, times(0.9)),
                ({"rho": 0.0, "step": 199}, times(1.1)),
            ),
            (
                ": best step",
                "variance",
                (NAN,),
                ({"rho": 2.0}, times(0.3)),
                ({"rho": 0.0}, times(3)),
            ),
            *(
                (
                    f", {name}: risk of another",
                    "squared_bias",
                    (NAN,),
                    ({"rho": rho, "step": 5}, plus(0.2)),
                    ({"rho": rho, "step": 5}, plus(-0.2)),
                )
                for name, rho in (("GD", 0.0), ("SAM", 2.0))
            ),
        )
    },
    "diagonal_networks": {
        "rho = 0.1, a shard an example: squared error": (
            "final_error",
            (EXAMPLES | ONE_SEED, times(8)),
        ),
        "rho = 0.1, a shard an example: l1": (
            "l1_norm",
            (EXAMPLES | ONE_SEED, times(1.5)),
        ),
        "rho = 0.1, a shard an example: geometric": (
            "scale",
            (EXAMPLES | ONE_SEED, times(6)),
        ),
        "rho = 0.1, one shard": ("final_error", (SAM | ONE_SEED, times(0.7))),
        "a shard an example: squared error": (
            "final_error",
            (FEW | ONE_SEED, times(0.1)),
        ),
    },
    "digits": {
        "rho = 0.1: curvature / figure": (
            "curvature",
            NAN,
            *(
                (cell, times(factor))
                for cell in (SGD, SAM, {"num_shards": 8}, {"num_shards": 32})
                for factor in (0.6, 1.5)
            ),
        ),
        "rho = 0.1, SAM / SGD: curvature": ("curvature", NAN, (SAM, times(2.5))),
        "rho = 0.1, mSAM, 32 shards / SAM: curvature": (
            "curvature",
            NAN,
            ({"num_shards": 32}, times(2)),
        ),
        "rho = 0.1: curvature of mSAM with 8": (
            "curvature",
            NAN,
            ({"num_shards": 8}, times(0.3)),
            ({"num_shards": 8}, times(3)),
        ),
        "rho = 0.1: curvature of SAM / SGD, every": (
            "curvature",
            (SAM | ONE_SEED, times(1.8)),
        ),
        "rho = 0.1, SAM / SGD: test": ("accuracy", NAN, (SAM, plus(-0.03))),
        "rho = 0.1, mSAM, 32 shards / SAM: test": (
            "accuracy",
            NAN,
            ({"num_shards": 32}, plus(-0.02)),
        ),
        "best larger": ("accuracy", NAN, (LARGE, plus(-0.03))),
        "largest rho": ("curvature", NAN, (LARGE, times(2))),
    },
    "edge_of_stability": {
        "sharpness, median": (
            "curvature",
            NAN,
            *(({"rho": rho}, times(x)) for rho in (0.0, 0.1) for x in (0.85, 1.2)),
        ),
        "sharpness at": ("curvature", ({"step": 0, "rho": 0.1}, times(3))),
        "loss": ("loss", NAN, ({"step": 0, "rho": 0.0}, times(1e-3))),
    },
    "matrix_sensing": {
        "gd, unnormalized": (
            "imbalance",
            *(
                ({"method": method, "step": 3980} | ONE_SEED, times(factor))
                for method in ("gd", "unnormalized")
                for factor in (0.85, 1.2)
            ),
        ),
        "SAM: imbalance": (
            "imbalance",
            (IS_SAM | {"step": 3980} | ONE_SEED, times(5)),
        ),
        "SAM: curvature": ("curvature", NAN, (IS_SAM, times(1.4))),
        "SAM, k = r, all entries: decay": (
            "rate",
            (IS_SAM | ONE_SEED, times(0.8)),
            (IS_SAM | ONE_SEED, times(1.2)),
        ),
        "SAM, k = r, all entries: curv": (
            "curvature",
            (IS_SAM | ONE_SEED, times(0.9)),
            (IS_SAM | ONE_SEED, times(1.1)),
        ),
        "SAM: error": ("error", (IS_SAM | ONE_SEED, times(12))),
    },
    "two_cycle": {
        "normalized: ||w||": (
            "last_norm",
            (CYCLE, times(1 + 3e-6)),
            (CYCLE, times(1 - 3e-6)),
        ),
        "normalized: share of w": ("turn", (CYCLE, plus(3e-6))),
        "normalized: share off": ("astray", (CYCLE, plus(3e-6))),
        "unnormalized": (
            "last_norm",
            ({"is_normalized": False} | ONE_SEED, plus(1e-7)),
        ),
    },
}

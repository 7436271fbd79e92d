"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


FIRST, SECOND = ({"seed": seed, "n": n} for seed, n in ((0, 16), (1, 64)))
SAM, MSAM = ({"num_shards": num, "rho": 0.05} for num in (1, 8))
RANK1, RANDOM = ({"method": name} for name in ("rank1", "random"))

WRONG = {
    "convergence": {
        "S4D: gap": ("spikes", NAN, (FIRST, plus(2e-5)), (FIRST, plus(-2e-5))),
        "S4D: kernel's": ("distance", NAN, (FIRST, plus(2e-5)), (FIRST, plus(-2e-5))),
        "rank-one PTD: condition": ("condition", NAN, (FIRST, plus(2e-5))),
        "S4D: spikes": ("spikes", NAN, (SECOND, times(1.02)), (SECOND, times(0.99))),
        "rank-one PTD: largest gap": ("ptd_gap", NAN, (SECOND, times(1.5))),
        "rank-one PTD: its distance": ("ptd_distance", NAN, (FIRST, times(2))),
        "error of the identity": ("identity_error", NAN, (SECOND, plus(2e-11))),
        "error of the equation": ("frequency_error", NAN, (SECOND, plus(2e-11))),
        "error of Legendre": ("legendre_error", NAN, (SECOND, plus(2e-12))),
    },
    "digits": {
        "legs": ("accuracy", NAN, ({"start": "legs"}, times(0.9))),
        "real": (
            "accuracy",
            NAN,
            ({"start": "real"}, plus(0.4)),
            ({"start": "legs"}, plus(-0.4)),
        ),
    },
    "listops": {
        "s5ptd: test": ("test_accuracy", NAN, ({"step": 7}, plus(-0.16))),
        "root MIN": ("operator_accuracy", NAN, ({"step": 7}, times(0.3))),
        "root MAX": ("operator_accuracy", NAN, ({"step": 7}, times(0.3))),
    },
    "msam": {
        "SAM / AdamW": ("curvature", NAN, (SAM, times(4))),
        "mSAM / AdamW": ("curvature", NAN, (MSAM, times(5))),
        "SAM, mSAM": ("accuracy", NAN, (SAM, plus(0.1)), (MSAM, plus(0.1))),
        "mSAM: test": ("accuracy", NAN, (SAM, plus(0.1)), (MSAM, plus(-0.1))),
        "AdamW: share": ("memorized", NAN, ({"rho": 0.0}, plus(0.15))),
    },
    "precision": {
        "n <= 64": ("error", NAN, ({"n": 64}, plus(1e-5))),
        "n = 256": ("error", NAN, ({"n": 256}, plus(4e-5))),
    },
    "condition": {
        "rank one, largest n": (
            "kappa",
            NAN,
            (RANK1 | {"n": 32}, times(0.95)),
            (RANK1 | {"n": 32}, times(1.1)),
        ),
        "rank one: n (1": ("kappa", NAN, (RANK1 | {"n": 16}, times(1.05))),
        "rank one: backward": (
            "backward_error",
            NAN,
            (RANK1 | {"n": 32}, times(1.01)),
            (RANK1 | {"n": 16}, times(0.99)),
        ),
        "random: slope": (
            "kappa",
            NAN,
            (RANDOM | {"setting": 0}, times(10)),
            (RANDOM | {"setting": 0}, times(0.1)),
        ),
        **{
            f"random, n = 16, eps = .001: {name}": (
                name,
                NAN,
                (RANDOM | {"n": 16}, times(1.02)),
                (RANDOM | {"n": 16}, times(0.98)),
            )
            for name in ("kappa", "gap")
        },
        "random, n = 16, eps = .1": ("abscissa", NAN, (RANDOM, plus(-10))),
        "optimized: kappa": ("random_kappa", NAN, ({"n": 16}, times(0.2))),
        "every E": ("abscissa", NAN, (RANDOM | {"setting": 0}, plus(1))),
        "rank one: relative gap over its bound": (
            "relative_gap",
            NAN,
            (RANK1 | {"n": 32, "setting": 2}, times(1.05)),
        ),
        "rank one: relative gap over its bound, where": (
            "relative_gap",
            NAN,
            (RANK1 | {"n": 16, "setting": 4}, times(0.9)),
        ),
        "rank one, t = 1/2": (
            "gap",
            NAN,
            (RANK1, times(10)),
            ({"method": "optimized"}, times(0.05)),
        ),
    },
    "fourier_gain": {
        **{
            f"{title}: gain over |G": (
                name,
                NAN,
                ({"n": 32, "spike": 2}, times(1.06)),
                ({"n": 16, "place": 1}, times(0.94)),
            )
            for title, name in (
                ("S4D", "s4d"),
                ("rank-one PTD", "ptd"),
                ("HiPPO-LegS", "legs"),
            )
        },
        "S4D: gain at the top eigenfrequency": (
            "s4d",
            NAN,
            ({"n": 16}, times(1.06)),
            ({"n": 32}, times(0.9)),
        ),
        "S4D: gain at the top eigenfrequency over": (
            "s4d",
            NAN,
            ({"place": 1}, times(10)),
        ),
        "rank-one PTD: gain over HiPPO": (
            "ptd",
            NAN,
            ({"n": 16}, times(1.06)),
            ({"n": 32}, times(0.94)),
        ),
        "S4D, largest n": ("s4d", NAN, ({"n": 32}, times(0.7))),
    },
    "robustness": {
        "clean digits": ("accuracy", NAN, ({"start": "ptd", "seed": 0}, times(0.9))),
        "S4D: first": ("gain_at", NAN, ({"start": "s4d", "seed": 0}, times(0.85))),
        "PTD: first": ("gain_at", NAN, ({"start": "ptd", "seed": 0}, times(1.15))),
        "S4D, amplitude": ("at", NAN, ({"start": "s4d"}, plus(0.1))),
        "PTD, amplitude": ("at", NAN, ({"start": "ptd"}, plus(-0.05))),
        "amplitude 0.2": (
            "at",
            NAN,
            ({"start": "ptd"}, plus(0.2)),
            ({"start": "ptd"}, plus(-0.2)),
        ),
    },
}

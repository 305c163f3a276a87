"""A plan of three layers with made-up times and noises."""

from fqt_deploy.planning.choices import CHOICES
from fqt_deploy.planning.make_plan import _points
from fqt_deploy.planning.plan import Budget, Plan, PlannedLayer, Point
from fqt_deploy.profiling.machine import Machine

SECONDS = dict(zip(CHOICES, (0.016, 0.005, 0.004, 0.0038, 0.003, 0.002), strict=True))
NOISE = dict(zip(CHOICES, (0.0, 0.22, 0.24, 0.3, 0.45, 0.9), strict=True))
MACHINE = Machine(processor="a processor", arch="x86_64", cores=2, threads=2)


def scaled(numbers, factor):
    return {choice: factor * number for choice, number in numbers.items()}


def a_plan(choices=(8, 4, 2), *, paths=("features.3", "features.7", "head [0]"), **changes):
    layers = tuple(
        PlannedLayer(path, scaled(SECONDS, factor), scaled(NOISE, 1 / factor))
        for path, factor in zip(paths, (2, 1, 0.5), strict=True)
    )
    points, asked = _points(layers, dict.fromkeys(paths, 4), 0.020)
    seconds = asked.seconds + sum(
        layer.seconds[choice] - layer.seconds[4] for layer, choice in zip(layers, choices, strict=True)
    )
    noise = sum(layer.noise[choice] for layer, choice in zip(layers, choices, strict=True))
    fields = {
        "name": "net",
        "machine": MACHINE,
        "batch": 64,
        "offered": CHOICES,
        "budget": Budget(1.1),
        "layers": layers,
        "frontier": points,
        "asked": asked,
        "chosen": Point(choices, seconds, noise),
        "measured": {"asked for": 0.0201, "chosen": 0.0215, "fp32": 0.07},
        "measured_noise": {"asked for": 0.8, "chosen": 0.85},
        "include": (),
        "excluded": (),
        "other_cores": 0.0,
    }
    return Plan(**{**fields, **changes})

"""Optimizers as values: what is refused, groups, and what the manifest says of them."""

from dataclasses import dataclass

import pytest

from fqt_deploy.command_line import help_text
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import OPTIMIZERS, SGD, Adam, AdamW, Optimizer, ParameterGroup
from fqt_deploy.core.option import OPTIMIZER, option
from fqt_deploy.settings import all_settings, options_of

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (Adam, {"lr": -1e-3}, "lr is -0.001; it must be a number of at least 0"),
        (Adam, {"lr": NAN}, "lr is nan"),
        (Adam, {"lr": INFINITY}, "lr is inf"),
        (Adam, {"lr": "fast"}, "lr is 'fast'"),
        (Adam, {"lr": True}, "lr is True"),
        (SGD, {"weight_decay": -0.1}, "weight_decay is -0.1"),
        (Adam, {"betas": (0.9, 1.0)}, "betas is (0.9, 1.0); it must be two values, each a number in [0, 1)"),
        (Adam, {"betas": 0.9}, "betas is 0.9"),
        (AdamW, {"betas": (0.9,)}, "betas is (0.9,)"),
        (AdamW, {"eps": -1e-8}, "eps is -1e-08"),
        (SGD, {"momentum": -0.9}, "momentum is -0.9"),
        (SGD, {"nesterov": True}, "nesterov needs a momentum above 0"),
        (SGD, {"nesterov": 1, "momentum": 0.9}, "nesterov is 1; it must be True or False"),
        (SGD, {"groups": "a.*"}, "groups is 'a.*'; it must be a dict from globs to learning rates, or a list of"),
        (SGD, {"groups": {"a.*": "fast"}}, "the learning rate of group 'a.*' is 'fast'"),
        (SGD, {"momentum": 0.9, "nesterov": True, "dampening": 0.1}, "nesterov takes no dampening"),
        (Adam, {"groups": {"a.*": {"rate": 1}}}, "group 'a.*' has no rate"),
        (Adam, {"groups": {"a.*": {"momentum": 0.9}}}, "optimizer adam has no momentum for group 'a.*'"),
        (Adam, {"groups": {"a.*": {"weight_decay": -1}}}, "the weight decay of group 'a.*' is -1"),
        (Adam, {"ema": 1.0}, "ema is 1.0"),
        (Adam, {"accumulate": 0}, "accumulate is 0"),
        (ParameterGroup, {"pattern": "", "lr": 0.1}, "the pattern of a parameter group is ''"),
        (ParameterGroup, {"pattern": 3, "lr": 0.1}, "the pattern of a parameter group is 3"),
        (ParameterGroup, {"pattern": "a.*", "lr": -1}, "the learning rate of group 'a.*' is -1"),
    ],
)
def test_impossible_values_are_refused(kind, given, said):
    with pytest.raises(FqtError) as caught:
        kind(**given)
    assert caught.value.code == "FQT202"
    assert said in caught.value.message


def test_edge_values_are_taken():
    assert SGD(lr=0, weight_decay=0, momentum=0).describe() == {
        "name": "sgd",
        "hyperparameters": {"weight_decay": 0, "momentum": 0, "dampening": 0.0, "nesterov": False},
        "groups": [{"pattern": "*", "lr": 0}],
    }
    assert Adam(lr=1, betas=[0, 0.5], eps=0).describe()["hyperparameters"] == {
        "weight_decay": 0, "betas": [0, 0.5], "eps": 0
    }  # fmt: skip


def test_the_first_matching_group_counts():
    optimizer = Adam(lr=1.0, groups=(ParameterGroup("features.0.*", 0.1), ParameterGroup("*.weight", 0.2)))
    assert optimizer.lrs() == (1.0, 0.1, 0.2)
    names = ("features.0.weight", "features.1.weight", "features.1.bias", "Features.0.bias")
    assert [optimizer.group_of(name) for name in names] == [1, 2, 0, 0]


def test_groups_are_written_as_a_dict_or_as_values():
    groups = (ParameterGroup("a.*", 0.1), ParameterGroup("*", 0))
    assert SGD(groups={"a.*": 0.1, "*": 0}).groups == SGD(groups=list(groups)).groups == groups


def test_an_optimizer_is_declared_by_its_class_alone():
    """Name, hyperparameters, settings and flags follow from the class; here one is declared and taken back."""
    known = list(OPTIMIZERS)
    assert known == ["adam", "adamw", "sgd", "rmsprop", "lion", "adafactor", "adadelta", "adagrad", "radam", "nadam"]

    try:

        @dataclass(frozen=True, kw_only=True)
        class Adan(Optimizer, name="adan"):
            lr: float = 1e-5
            interpolation: float = option(0.9, "Share of the momentum.", section=OPTIMIZER, minimum=0, below=1)

        assert options_of({"optimizer": "adan", "interpolation": 0.5}).optimizer == Adan(interpolation=0.5)
        assert Adan().describe()["hyperparameters"] == {"weight_decay": 0.0, "interpolation": 0.9}
        settings = all_settings()
        assert settings["optimizer"].kind.choices == (*known, "adan")
        assert settings["lr"].default_text == (
            "0.001; 0.01 for sgd; 0.01 for rmsprop; 0.0001 for lion; 0.01 for adafactor; 1 for adadelta; "
            "0.01 for adagrad; 0.002 for nadam; 1e-05 for adan"
        )
        assert help_text(settings["interpolation"]) == "adan: Share of the momentum.  [default: 0.9]"
        with pytest.raises(FqtError, match=r"optimizer adan has no betas"):
            options_of({"optimizer": "adan", "betas": (0.9, 0.99)})
    finally:
        del OPTIMIZERS["adan"]


def test_what_the_manifest_says():
    described = AdamW(lr=0.5, groups=(ParameterGroup("a.*", 0.1),)).describe()
    assert described == {
        "name": "adamw",
        "hyperparameters": {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8},
        "groups": [{"pattern": "*", "lr": 0.5}, {"pattern": "a.*", "lr": 0.1}],
    }
    assert SGD(momentum=0.9, nesterov=True).describe()["hyperparameters"] == {
        "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0, "nesterov": True
    }  # fmt: skip


def test_a_group_has_hyperparameters_of_its_own():
    """What decays is said by groups, by globs, or by the number of axes."""
    optimizer = AdamW(
        weight_decay=0.5,
        groups={"a.*,b.*": {"lr": 0.1, "betas": (0.5, 0.6)}, "c.*": {"weight_decay": 0.1}},
        no_decay="*.norm.*",
        decay="matrices",
    )
    assert optimizer.lrs() == (1e-3, 0.1, 1e-3)
    own = {
        name: optimizer.for_parameter(name, axes)
        for name, axes in (("b.w", 2), ("b.bias", 1), ("c.w", 4), ("c.norm.w", 2), ("d.w", 2), ("d.scale", 0))
    }
    assert {name: (o.lr, o.betas[0], o.weight_decay) for name, o in own.items()} == {
        "b.w": (0.1, 0.5, 0.5), "b.bias": (0.1, 0.5, 0.0), "c.w": (1e-3, 0.9, 0.1), "c.norm.w": (1e-3, 0.9, 0.0),
        "d.w": (1e-3, 0.9, 0.5), "d.scale": (1e-3, 0.9, 0.0),
    }  # fmt: skip
    assert optimizer.describe()["groups"] == [
        {"pattern": "*", "lr": 1e-3},
        {"pattern": "a.*,b.*", "lr": 0.1, "betas": [0.5, 0.6]},
        {"pattern": "c.*", "weight_decay": 0.1, "lr": 1e-3},
    ]
    kept = optimizer.describe()["hyperparameters"]
    assert (kept["no_decay"], kept["decay"]) == (["*.norm.*"], "matrices")
    assert "accumulate" not in kept


def test_moments_in_fp32_are_not_described() -> None:
    """Older artifacts knew no others: theirs and today's are the same."""
    assert "moment_bits" not in Adam().describe()["hyperparameters"]
    assert AdamW(moment_bits=8).describe()["hyperparameters"]["moment_bits"] == 8


@pytest.mark.parametrize("name", ["sgd", "radam", "nadam"])
def test_only_adam_and_adamw_keep_moments_in_8_bits(name: str) -> None:
    """Others are refused, not compiled with moments in fp32."""
    with pytest.raises(FqtError, match="moment_bits") as error:
        options_of({"optimizer": name, "moment_bits": 8})
    assert error.value.code == "FQT202"

"""Whatever is passed for an argument, a public constructor takes it or says in its own words what it needs."""

import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from flowplug.hosts import HostTransform
from flowplug.testing import check_transform


class Bridge(HostTransform):
    def _to_latent(self, x, context):
        return x, 0.0

    def _to_data(self, y, context):
        return y, 0.0


# Values by name, and the kinds of argument that each may be one of.
VALUES = {
    "-1": (-1, {"outside", "seed"}),
    "0": (0, {"int", "number", "seed"}),
    "3": (3, {"int", "number", "seed"}),
    "2.5": (2.5, {"number"}),
    "nan": (math.nan, {"outside"}),
    "True": (True, {"bool"}),
    "None": (None, {"none"}),
    "string": ("exact", {"string"}),
    "shape": ((3, None, None), set()),
    "sizes": ((2, 3), {"sizes"}),
    "empty": ((), {"sizes"}),
    "strings": (["a"], set()),
    "dict": ({}, set()),
    "tensor": (torch.zeros(2), {"tensor"}),
    "module": (nn.Tanh(), {"module", "call"}),
    "class": (nn.Tanh, {"factory"}),
    "class with arguments": (nn.Linear, {"factory"}),
    "class of ours": (fp.Krylov, {"factory"}),
    "function": (lambda: 3, {"call", "factory"}),
    "object": (object(), set()),
}

# What the annotation of an argument admits; whether the value itself is good is up to the constructor.
ADMITS = {
    "int": {"int"},
    "float": {"number"},
    "bool": {"bool"},
    "str": {"string"},
    "None": {"none"},
    "Literal['zeros', 'circular']": {"string"},
    "Sequence[int]": {"sizes"},
    "tuple[int, ...]": {"sizes"},
    "Tensor": {"tensor"},
    "Module": {"module"},
    "Callable[[], Module]": {"factory"},
    "LogDet": {"call"},
    "Solver": {"call"},
    "Control": {"call"},
    "Terms": set(),
    "Length": set(),
    "Probes": set(),
    "Gradient": set(),
    "OperatorNorm": set(),
    "NetworkNorm": set(),
    "Sequence[OperatorNorm]": {"sizes"},
    "Transform": set(),
    "ImageStart": set(),
    "dtype": set(),
}

CORE = {
    "ActNorm": (fp.ActNorm, {"features": 2}),
    "Whitening": (fp.Whitening, {"features": 2}),
    "MarginalGaussianization": (fp.MarginalGaussianization, {"features": 2}),
    "HistogramGaussianization": (fp.HistogramGaussianization, {"features": 2}),
    "Squeeze": (fp.Squeeze, {}),
    "Reshape": (fp.Reshape, {"event_shape": (2, 3), "latent_shape": 6}),
    "Logit": (fp.Logit, {}),
    "Dequantize": (fp.Dequantize, {}),
    "PatchTransform": (fp.PatchTransform, {"transform": fp.ActNorm(4), "event_shape": (1, 2, 4), "size": 2}),
    "PixelStart": (fp.PixelStart, {}),
    "PatchStart": (fp.PatchStart, {}),
    "ImageStack": (fp.ImageStack, {"event_shape": (1, 4, 4)}),
    "PublishedImageStack": (fp.PublishedImageStack, {"event_shape": (1, 4, 4), "transforms": (1,)}),
    "InverseTransform": (fp.InverseTransform, {"transform": fp.ActNorm(2)}),
    "ResidualTransform": (fp.ResidualTransform, {"g": fp.LipschitzMLP(2)}),
    "ResidualTransform of any g": (fp.ResidualTransform, {"g": nn.Sequential(fp.LipschitzLinear(2, 2, bound=0.9))}),
    "ResidualStack": (fp.ResidualStack, {"features": 2}),
    "HostTransform": (Bridge, {"host": None, "event_dim": 1, "context_features": 0}),
    "Branch": (fp.Branch, {"g": fp.LipschitzMLP(2), "context": None}),
    "LipschitzMLP": (fp.LipschitzMLP, {"features": 2}),
    "LipschitzMLP by Gram": (fp.LipschitzMLP, {"features": 2, "norm": fp.Gram()}),
    "LipschitzCNN": (fp.LipschitzCNN, {"channels": 2}),
    "LipschitzCNN by PathNorm": (fp.LipschitzCNN, {"channels": 2, "norm": fp.PathNorm()}),
    "LipschitzDenseNet": (fp.LipschitzDenseNet, {"features": 2, "hidden_features": (4,)}),
    "LipschitzDenseNet of images": (fp.LipschitzDenseNet, {"features": 2, "hidden_features": (4,), "kernel_size": 3}),
    "LipschitzLinear": (fp.LipschitzLinear, {"in_features": 2, "out_features": 3}),
    **{
        name: (getattr(fp, name), {"in_channels": 2, "out_channels": 3, "kernel_size": 3})
        for name in ("LipschitzConv1d", "LipschitzConv2d", "LipschitzConv3d")
    },
    "Sine": (fp.Sine, {}),
    "SineHuber": (fp.SineHuber, {}),
    "CLipSwish": (fp.CLipSwish, {}),
    "GroupSort": (fp.GroupSort, {"group_size": 2}),
    "Gram": (fp.Gram, {}),
    "PowerIteration": (fp.PowerIteration, {}),
    "InducedNorm": (fp.InducedNorm, {"domain": 2.0, "codomain": 2.0}),
    "LearnedOrder": (fp.LearnedOrder, {}),
    "Geometric": (fp.Geometric, {"p": 0.5}),
    "Poisson": (fp.Poisson, {"rate": 2.0}),
    "Rademacher": (fp.Rademacher, {}),
    "Gaussian": (fp.Gaussian, {}),
    "Orthogonal": (fp.Orthogonal, {}),
    "Truncated": (fp.Truncated, {"n": 3}),
    "Converged": (fp.Converged, {}),
    "Roulette": (fp.Roulette, {"length": fp.Geometric(0.5)}),
    "Krylov": (fp.Krylov, {}),
    "PowerSeries": (fp.PowerSeries, {}),
    "Recompute": (fp.Recompute, {}),
    "Anderson": (fp.Anderson, {}),
    "FixedPoint": (fp.FixedPoint, {}),
    "Noise": (fp.Noise, {}),
}
HOSTS = {
    "nflows.NflowsTransform": (flowplug_nflows.NflowsTransform, {"core": fp.ActNorm(2)}),
    "nflows.ResidualTransform": (flowplug_nflows.ResidualTransform, {"features": 2, "hidden_features": 4}),
    "nflows.ResidualFlow": (
        flowplug_nflows.ResidualFlow,
        {"features": 2, "hidden_features": 4, "num_layers": 1, "num_blocks_per_layer": 1},
    ),
    "nflows.ImageFlow": (flowplug_nflows.ImageFlow, {"stack": fp.ActNorm(2)}),
    "normflows.ImageFlow": (flowplug_normflows.ImageFlow, {"stack": fp.ActNorm(2)}),
    "normflows.NormflowsFlow": (flowplug_normflows.NormflowsFlow, {"core": fp.ActNorm(2)}),
    "normflows.Residual": (flowplug_normflows.Residual, {"net": 2}),
    "normflows.ResidualFlow": (flowplug_normflows.ResidualFlow, {"features": 2}),
    "zuko.ZukoTransform": (flowplug_zuko.ZukoTransform, {"core": fp.ActNorm(2)}),
    "zuko.BoundTransform": (flowplug_zuko.BoundTransform, {"core": fp.ActNorm(2)}),
    "zuko.ResidualTransform": (flowplug_zuko.ResidualTransform, {"features": 2}),
    "zuko.ResidualFlow": (flowplug_zuko.ResidualFlow, {"features": 2}),
    "zuko.StandardNormal": (flowplug_zuko.StandardNormal, {"event_shape": (1, 2, 2)}),
    "zuko.ImageFlow": (flowplug_zuko.ImageFlow, {"stack": fp.ActNorm(2)}),
    "zuko.DenseFlow": (flowplug_zuko.DenseFlow, {"features": 2}),
}
# Why a class is not in the tables.
ELSEWHERE = {
    "ComposedTransform": "takes any number of arguments, below",
    "MultiscaleTransform": "takes any number of arguments, as tests/images shows",
    "FullSort": "takes no arguments",
    "LipschitzBound": "a tuple of what its caller found",
    **dict.fromkeys(
        (
            "CircularConv2d",
            "Deferred",
            "DenseConv1x1",
            "DenseTransform",
            "ScaledIdentity",
            "SmoothLeakyReLU",
            "TanhLinear",
            "Dense",
        ),
        "tested in tests/dense",
    ),
}
# Whose own words are torch's, and what the caller knows them from.
OF_TORCH = {"device", "cache_size"}
# Given by flowplug itself, in every pass.
INNER = {"mix", "by_content", "number"}
SIGNED = {"seed", "low"}  # may be negative
OF_DENSE = {"activation", "bias", "gradient", "value", "init"}


def admitted(annotation):
    """The kinds of value that an annotation admits."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    parts = re.sub(r"\w+\.(?=\w)", "", text).split(" | ")
    return set().union(*(ADMITS[part] for part in parts))


def trials():
    for name, (make, good) in {**CORE, **HOSTS}.items():
        for parameter in inspect.signature(make).parameters.values():
            skipped = OF_TORCH | INNER | (OF_DENSE if name == "zuko.DenseFlow" else set()) | {"host"}
            # A target or base distribution is whatever has a log_prob.
            annotation = "None" if parameter.name in ("q0", "p") and "normflows" in name else parameter.annotation
            if parameter.name not in skipped:
                kinds = admitted(annotation) | ({"seed"} if parameter.name in SIGNED else set())
                yield pytest.param(make, good, parameter.name, kinds, id=f"{name}-{parameter.name}")


def failure(make, arguments):
    """The error of a call, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is asked is whether an error is raised, and which
        try:
            make(**arguments)
        except Exception as error:  # noqa: BLE001, RUF100 -- which ones are right is what is tested
            return error
    return None


def is_ours(error):
    """Whether an error was raised on purpose: of our classes, or a built-in that says what it got."""
    says = re.search(r"\bgot\b|\bmade\b|is called without|Invalid padding string", str(error))
    return isinstance(error, fp.FlowplugError) or (isinstance(error, TypeError | ValueError) and says)


@pytest.mark.parametrize(("make", "good", "name", "kinds"), list(trials()))
def test_every_argument_of_every_constructor(make, good, name, kinds):
    assert failure(make, good) is None
    wrong = []
    for label, (value, is_one_of) in VALUES.items():
        error = failure(make, {**good, name: value})
        if error is None:
            fine = kinds & is_one_of
        else:
            # Where the value is out of range, whoever is handed it may say so.
            named = re.search(rf"\b{name}\b", str(error)) or (kinds & {"int", "number"} and "outside" in is_one_of)
            fine = is_ours(error) and (kinds & is_one_of or named)
        if not fine:
            wrong.append(f"{name}={label}: {'accepted' if error is None else repr(error)}")
    assert not wrong, "\n".join(wrong)


def test_the_tables_name_every_public_class():
    packages = {"": fp, "nflows.": flowplug_nflows, "normflows.": flowplug_normflows, "zuko.": flowplug_zuko}
    for prefix, package in packages.items():
        for name in getattr(package, "__all__", dir(package)):
            kind = getattr(package, name)
            if name.startswith("_") or not inspect.isclass(kind) or issubclass(kind, Exception) or name in ELSEWHERE:
                continue
            if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False):
                continue
            parameters = [p for p in inspect.signature(kind).parameters.values() if p.name not in ("args", "kwargs")]
            assert not parameters or prefix + name in {**CORE, **HOSTS}, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp.LipschitzMLP(4, 64), r"LipschitzMLP\(hidden_features=\.\.\.\).* sequence.*got 64: write \(64,\)"),
        (lambda: flowplug_zuko.ResidualTransform(2, hidden_features=64), r"got 64: write \(64,\)"),
        (lambda: flowplug_normflows.Residual(2, hidden_features=64), r"got 64: write \(64,\)"),
        (lambda: flowplug_nflows.ResidualTransform(2, (64, 64)), r"integer; got \(64, 64\): one number, not a seq"),
        (lambda: flowplug_nflows.ResidualTransform(2, 8, context_features="2"), "context_features.*got '2'"),
        (lambda: fp.ActNorm((3, None, None)), r"ActNorm\(features=\.\.\.\) must be an integer; got \(3, None, None\)"),
        (lambda: fp.LipschitzMLP(2, activation="relu"), "activation=.* must make a module.*; got 'relu'"),
        (lambda: fp.LipschitzMLP(2, activation=fp.Sine()), "activation=.* must make a module.*; got Sine"),
        (lambda: fp.LipschitzMLP(2, activation=nn.Linear), r"activation=\.\.\. is called without arguments"),
        (lambda: fp.LipschitzMLP(2, activation=dict), r"activation=\.\.\. must make a module.*; made {}"),
        (lambda: fp.LipschitzMLP(2, bound="x"), r"LipschitzMLP\(bound=\.\.\.\) must be a number; got 'x'"),
        (lambda: fp.LipschitzMLP(2, bound=torch.tensor(0.5)), r"must be a number; got a tensor of shape \(\)"),
        (lambda: fp.LipschitzMLP(2, context_features=None), "must be an integer; got None"),
        (lambda: fp.LipschitzLinear(2, 2, dtype=torch.int64), "floating-point torch.dtype or None; got torch.int64"),
        (lambda: fp.ResidualTransform(fp.LipschitzMLP), r"got the class LipschitzMLP itself: call it"),
        (
            lambda: fp.ResidualTransform(fp.LipschitzMLP(2), logdet="exact"),
            r"logdet=.* such as ExactLogDet\(\).*'exact'",
        ),
        (lambda: fp.ResidualTransform(fp.LipschitzMLP(2), logdet=fp.Krylov), "got the class Krylov itself: call it"),
        (lambda: fp.ResidualTransform(fp.LipschitzMLP(2), solver=fp.Anderson), "the class Anderson itself: call it"),
        (lambda: fp.ResidualTransform(fp.LipschitzMLP(2), chunk_size=2.5), "chunk_size=.* an integer; got 2.5"),
        (
            lambda: fp.Krylov(terms=5),
            r"Krylov\(terms=\.\.\.\) must be the terms of a series, such as Truncated\(5\); got 5",
        ),
        (lambda: fp.Krylov(terms=fp.Geometric(0.5)), "the terms of a series.*; got Geometric"),
        (lambda: fp.Krylov(probes=3), r"probes=\.\.\.\) must be probes, such as Rademacher\(samples=3\); got 3"),
        (lambda: fp.Roulette(0.5), r"Roulette\(length=\.\.\.\) must be a length, such as Geometric\(0\.5\); got 0\.5"),
        (
            lambda: fp.ComposedTransform([fp.ActNorm(2), fp.ActNorm(2)]),
            r"one by one: ComposedTransform\(\*transforms\)",
        ),
        (lambda: fp.ComposedTransform(fp.ActNorm(2), nn.Linear(2, 2)), "must be a Transform.*; got the module Linear"),
        (
            lambda: fp.InverseTransform(nn.Linear(2, 2)),
            r"must be a Transform, such as ActNorm\(2\); got the module Linear",
        ),
        (lambda: fp.lipschitz_bound(3), r"lipschitz_bound\(module=\.\.\.\) must be a Module.*; got 3"),
        (lambda: fp.lipschitz_bound(nn.Tanh), "got the class Tanh itself: call it"),
        (
            lambda: check_transform(fp.ActNorm(2), torch.randn(4, 2)),
            "must build a fresh transform.*; got an object of class ActNorm",
        ),
        (lambda: check_transform(fp.ActNorm, [1.0]), r"check_transform\(x=\.\.\.\) must be a Tensor"),
        (
            lambda: Bridge(None, event_dim="1", context_features=0),
            r"Bridge\(event_dim=\.\.\.\) must be an int.*got '1'",
        ),
    ],
)
def test_what_is_said(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_rule_returns_a_bound():
    class Halve(nn.Module):
        pass

    fp.lipschitz_bound.register(Halve, lambda module: 0.5)
    with pytest.raises(
        fp.LipschitzError, match=r"the rule registered for Halve must return a LipschitzBound.*got 0\.5"
    ):
        fp.lipschitz_bound(Halve())


@pytest.mark.parametrize("kernel_size", [(3,), (3, 3, 3), ()])
def test_sizes_of_another_number_of_dimensions(kernel_size):
    with pytest.raises(fp.ShapeError, match=r"LipschitzConv2d\(kernel_size=\.\.\.\) must be one number, or 2; got"):
        fp.LipschitzConv2d(2, 2, kernel_size)


def test_noise_is_fixed_by_an_integer():
    with pytest.raises(TypeError, match=r"fixed_noise\(seed=\.\.\.\) must be an integer; got 'x'"), fp.fixed_noise("x"):
        pass


def test_integers_of_numpy_are_integers():
    two = np.int64(2)
    flow = fp.ResidualStack(two, two, (np.int32(4), two), context_features=two)
    assert flow(torch.randn(3, 2), torch.randn(3, 2))[0].shape == (3, 2)
    image = fp.ResidualTransform(
        fp.LipschitzCNN(two, [two], kernel_sizes=(np.int64(3), np.int64(1)), bound=np.float32(0.9))
    )
    assert image(torch.randn(1, 2, 3, 3))[1].shape == (1,)
    assert fp.LipschitzConv2d(two, two, np.int64(3))(torch.randn(1, 2, 3, 3)).shape == (1, 2, 3, 3)

"""Everything that makes one optimisation attack differ from another, and the attacks by name, each with the settings
that its authors, or the code people use, publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from torch import nn

from leaklearn.attacks.inversion.objectives import OBJECTIVES
from leaklearn.attacks.inversion.priors import PRIORS, STARTS
from leaklearn.attacks.inversion.steps import SCHEDULES, STEPS, TRANSFORMS
from leaklearn.attacks.labels.restoration import METHODS

# Layers whose derivative jumps.
KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.MaxPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Settings:
    """An optimisation attack: minimise `weight` * objective + the weighted priors over the dummy images.

    A ValueError refuses a name that is in no table, and a number out of range.
    """

    name: str = "custom"
    objective: str = "cosine"  # one of `OBJECTIVES`
    weight: float = 1.0  # of the objective
    priors: Mapping[str, float] = field(default_factory=dict)  # weight of each, by its name in `PRIORS`
    start: str = "normal"  # one of `STARTS`
    step: str = "adam"  # or "lbfgs"
    transform: str = "sign"  # of the derivative before the step, one of `TRANSFORMS`: the sign moves all pixels alike
    lr: float = 0.1  # step length in normalised pixel units
    schedule: str = "step"  # one of `SCHEDULES`
    warmup: int = 0  # iterations over which the step length rises to `lr`
    iterations: int = 1000  # evaluations of the derivative
    # Share of the iterations, the last ones, that L-BFGS makes from the best point so far: it converges where the sign
    # only jitters. `schedule` runs over the others.
    polish: float = 0.0
    history: int = 30  # pairs that L-BFGS keeps: more find a better direction and cost as much memory and time
    boxed: bool = True  # whether pixels are kept in the range that images have
    restarts: int = 1  # independent starts for each client; the one of least objective is kept
    langevin: float = 0.0  # standard deviation of noise added to the derivative, times the step length
    matched: float = 1.0  # share of each update's entries, the largest, that are matched: partial gradient matching
    # b in (1 - b) * dD(x) + b * dD(x + r * dD(x) / |dD(x)|): flattens the objective around its minimum, as a penalty on
    # |dD| would (Zhao et al., ICML 2022); FedLeak's second idea. Doubles the cost.
    gradient_penalty: float = 0.0
    # Iterations after all others, in float64 and without priors, for clients whose images are not proved yet: a third
    # on the cosine, then on the squared distance; see `leaklearn.attacks.inversion.proof`. 0: none, and no proof.
    exact: int = 0
    # Settings to take instead where no layer of the network has a kink: there L-BFGS converges, elsewhere it sticks.
    if_smooth: Mapping[str, Any] = field(default_factory=dict)
    # Where labels come from when none are given: "joint" optimises them with the images (DLG), anything else is a
    # method of `leaklearn.attacks.labels.restore_labels`.
    labels: str = "auto"
    source: str = ""  # where the attack is published

    def __post_init__(self) -> None:
        tables = {"objective": OBJECTIVES, "start": STARTS, "step": STEPS, "transform": TRANSFORMS}
        for name, table in {**tables, "schedule": SCHEDULES}.items():
            if getattr(self, name) not in table:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(table)}")
        for name, weight in self.priors.items():
            if name not in PRIORS:
                raise ValueError(f"unknown prior {name!r}; choose among {', '.join(PRIORS)}")
            if not (isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of prior {name!r} is {weight}; it is a finite number, at least 0")
        for name in ("weight", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0")
        for name, least in {"iterations": 1, "restarts": 1, "history": 1, "warmup": 0, "exact": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it is a whole number of at least {least}")
        if not 0 <= self.polish <= 1:
            raise ValueError(f"polish is {self.polish}; it is a share of the iterations, 0 to 1")
        if not self.langevin >= 0:
            raise ValueError(f"langevin is {self.langevin}; it is at least 0")
        if not 0 < self.matched <= 1:
            raise ValueError(f"matched is {self.matched}; it is a share of the entries, above 0 and at most 1")
        if not 0 <= self.gradient_penalty < 1:
            raise ValueError(f"gradient_penalty is {self.gradient_penalty}; it is at least 0 and below 1")
        if "group" in self.priors and self.restarts < 2:
            raise ValueError("the prior 'group' compares restarts: set restarts to 2 or more, or leave it out")
        if self.labels not in ("joint", *METHODS):
            raise ValueError(f"labels is {self.labels!r}; choose 'joint' or one of {', '.join(METHODS)}")

    def with_changes(self, **changes: object) -> Settings:
        """Some settings changed, whatever the network."""
        kept = {name: value for name, value in self.if_smooth.items() if name not in changes}
        return replace(self, if_smooth=kept, **changes)

    def for_network(self, model: nn.Module) -> Settings:
        """The settings that hold for a network; kinks in functions that its `forward` calls are not seen."""
        kinked = any(isinstance(module, KINKED) for module in model.modules())
        return replace(self, if_smooth={}, **({} if kinked else self.if_smooth))


_DLG = Settings(
    name="dlg",
    source="Zhu et al., Deep Leakage from Gradients, NeurIPS 2019",
    objective="euclidean",
    step="lbfgs",
    transform="none",
    lr=1.0,
    schedule="constant",
    iterations=6000,
    history=100,
    boxed=False,
    labels="joint",
)
_PRESETS = (
    # Images and labels together, L-BFGS at step length 1 with PyTorch's history of 100, 300 steps of up to 20
    # evaluations.
    _DLG,
    # The same with labels read off the update.
    replace(_DLG, name="idlg", source="Zhao, Mopuri, Bilen, iDLG, arXiv 2001.02610", labels="idlg"),
    # As breaching configures it: total variation 0.2 is made for ImageNet; at 32x32 pixels 1e-2 to 1e-5 is better.
    Settings(
        name="inverting_gradients",
        source="Geiping et al., Inverting Gradients, NeurIPS 2020",
        objective="cosine",
        priors={"tv": 0.2},
        transform="sign",
        schedule="step",
        iterations=24_000,
        labels="bias_corrected",
    ),
    # As breaching configures it (its objective is half the squared distance, hence 0.5e-4). Group consistency needs
    # several restarts: add "group": 0.01 with restarts=4.
    Settings(
        name="gradinversion",
        source="Yin et al., See through Gradients, CVPR 2021",
        objective="euclidean",
        weight=0.5e-4,
        priors={"tv": 1e-4, "l2": 1e-6, "batch_norm": 0.1},
        transform="none",
        schedule="cosine",
        warmup=50,
        iterations=20_000,
        langevin=0.01,
        labels="gradinversion",
    ),
    # The best of the literature, put together by breaching's authors.
    Settings(
        name="modern",
        source="Geiping et al., breaching (github.com/JonasGeiping/breaching)",
        objective="cosine",
        priors={"tv_opponents": 0.1, "features": 0.1},
        start="patterned",
        transform="soft_sign",
        schedule="cosine",
        warmup=50,
        iterations=24_000,
        labels="bias_corrected",
    ),
    # A flat start and large steps of the sign that die away; where the network is smooth, L-BFGS alone, which
    # needs a third of the iterations. Total variation with double opponents, rounded off.
    Settings(
        name="fast",
        source="ours",
        objective="cosine",
        priors={"tv_smooth": 0.05},
        start="colours",
        transform="sign",
        lr=0.5,
        schedule="cosine",
        iterations=150,
        if_smooth={"polish": 1.0, "priors": {"tv_smooth": 1e-3}},
    ),
)
# What stops `fast` are float32, the cosine, which is blind below 1e-7, and the prior. Without them a smooth network's
# gradient is inverted until every pixel rounds to its grey level, and the attacker knows when.
_EXACT = replace(_PRESETS[-1], name="exact", exact=1500)
PRESETS: dict[str, Settings] = {settings.name: settings for settings in (*_PRESETS, _EXACT)}

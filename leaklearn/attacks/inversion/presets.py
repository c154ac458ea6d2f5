"""The attacks by name, each with the settings that its authors, or the code people use, publish."""

from __future__ import annotations

from leaklearn.attacks.inversion.settings import Settings

PRESETS: dict[str, Settings] = {
    # Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019: images and labels together, L-BFGS at step length 1 with
    # PyTorch's history of 100, 300 steps of up to 20 evaluations.
    "dlg": Settings(
        name="dlg",
        objective="euclidean",
        start="normal",
        step="lbfgs",
        transform="none",
        lr=1.0,
        schedule="constant",
        iterations=6000,
        history=100,
        boxed=False,
        labels="joint",
    ),
    # Zhao, Mopuri, Bilen, "iDLG", arXiv 2001.02610: the same with labels read off the update.
    "idlg": Settings(
        name="idlg",
        objective="euclidean",
        start="normal",
        step="lbfgs",
        transform="none",
        lr=1.0,
        schedule="constant",
        iterations=6000,
        history=100,
        boxed=False,
        labels="idlg",
    ),
    # Geiping et al., "Inverting Gradients", NeurIPS 2020, as breaching configures it: total variation 0.2 is made for
    # ImageNet; at 32x32 pixels 1e-2 to 1e-5 is better.
    "inverting_gradients": Settings(
        name="inverting_gradients",
        objective="cosine",
        priors={"tv": 0.2},
        start="normal",
        transform="sign",
        lr=0.1,
        schedule="step",
        iterations=24_000,
        labels="bias_corrected",
    ),
    # Yin et al., "See through Gradients", CVPR 2021, as breaching configures it (its objective is half the squared
    # distance, hence 0.5e-4). Group consistency needs several restarts: add "group": 0.01 with restarts=4.
    "gradinversion": Settings(
        name="gradinversion",
        objective="euclidean",
        weight=0.5e-4,
        priors={"tv": 1e-4, "l2": 1e-6, "batch_norm": 0.1},
        start="normal",
        transform="none",
        lr=0.1,
        schedule="cosine",
        warmup=50,
        iterations=20_000,
        langevin=0.01,
        labels="gradinversion",
    ),
    # breaching's "modern": the best of the literature put together by its authors.
    "modern": Settings(
        name="modern",
        objective="cosine",
        priors={"tv_opponents": 0.1, "features": 0.1},
        start="patterned",
        transform="soft_sign",
        lr=0.1,
        schedule="cosine",
        warmup=50,
        iterations=24_000,
        labels="bias_corrected",
    ),
    # Ours. A flat start and large steps of the sign that die away; where the network is smooth, L-BFGS alone, which
    # needs a third of the iterations. Total variation with double opponents, rounded off.
    "fast": Settings(
        name="fast",
        objective="cosine",
        priors={"tv_smooth": 0.05},
        start="colours",
        transform="sign",
        lr=0.5,
        schedule="cosine",
        iterations=150,
        if_smooth={"polish": 1.0, "priors": {"tv_smooth": 1e-3}},
    ),
}


def preset(name: str) -> Settings:
    """Settings by name.

    Raises
    ------
    ValueError
        For a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown attack {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]

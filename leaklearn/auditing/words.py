"""What an audit says in plain words: what each attack does and leaves open, what to do next, and what words mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from scipy.stats import binomtest

from leaklearn.federated.protocols import FedAvg, Protocol
from leaklearn.report.names import label

if TYPE_CHECKING:
    from leaklearn.auditing.found import Audit

_CHANGED = "One round and 4 neurons an image were tried; more may take more."
_DOES = {
    "peeled_loki": "The server sends each client a model with an extra first layer, whose update holds the images.",
    "loki": "The server sends each client a model with an extra first layer, whose update holds the images.",
    "peeled_bins": "The server sends all clients a model with an extra first layer, whose update holds the images.",
    "robbing_the_fed": "The server sends all clients a model with an extra first layer; the attack as published.",
    "peeled_honest": "The server changes nothing and solves the first layer's update for the images.",
    "soliton_data": "The server changes the first layer's biases only, and solves its update for the images.",
    "own_layer": "The server sets the weights of the model's own layers so that single images pass, and reads them.",
    "gradient_inversion": "The server changes nothing and searches for images that would give the same update.",
}
_LEAVES = {
    "peeled_honest": "One batch at a time. More neurons in the first layer, or several rounds, may give more.",
    "own_layer": "One round and one draw of weights; other weights, and other rounds, read other images.",
    "gradient_inversion": "{iterations} iterations on {clients}, one round, no learned model of such images. "
    "More time, several rounds or a better prior may read more.",
}
UNLABELLED = (
    "images have no label that explains their gradient, as where norm layers leave float32 little but rounding; they "
    "count as wrong"
)
"""What is said of images whose labels could not be read, by how many."""
NOT_TESTED = "not tested: one image"
"""What stands in the place of a client's tests where they had too few images."""
HELPS = 0.5
"""Share of the undefended leak that a defence leaves at most, to be named among what helped."""

TERMS = {
    "server, client": "Clients train the model on images that they keep. The server sends the model out and collects "
    "what the clients send back. Here the server is the one who attacks.",
    "update": "What a client sends back: how its images would change the model. No image is in it as such; the attacks "
    "here compute images from it.",
    "images taken": "An image counts as taken where the attack's version of it comes so close that a person would "
    "usually recognise it (20 dB or more; where the server only reads, also 3 dB closer than a blank).",
    "100 %: 86 to 100 %": "Few clients were attacked. Behind a measured share stands the range in which the true one "
    "lies with 95 % confidence. Where nothing was found, its upper end tells how much may still be there.",
    "likeness (dB)": "How close a version is to the true image: 20 dB is recognisable, 30 dB good, 60 dB the same "
    "to the eye. A blank is a picture that shows nothing, such as the mean of many images; an attack that comes "
    "no closer has read nothing. Exact: 60 dB or more.",
    "batch": "The images that a client computes one step from. The more images, the harder they are to tell apart.",
    "FedSGD, FedAvg": "With FedSGD a client sends the gradient of one step, with FedAvg the change of the model over "
    "several steps.",
    "secure aggregation": "The server sees only the sum of many clients' updates.",
    "clipping and noise": "Each image's influence is cut to a fixed size, and random numbers are added (differential "
    "privacy, DP-SGD). z is how much noise, in units of that size.",
    "a client's tests": "Checks that a client can run on a model before it answers (leaklearn.federated.detection).",
}
"""What the page explains."""


def does(attack: str) -> str:
    """What an attack does, in one sentence."""
    return _DOES.get(attack, "")


def leaves(attack: str, **about: object) -> str:
    """What an attack leaves open, in a sentence or two."""
    return _LEAVES.get(attack, _CHANGED).format(**about)


def counted(number: int, what: str) -> str:
    """1 client, 2 clients."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def leaves_defended(attacks: Sequence[str], *, planned: bool = True) -> str:
    """What the strongest of several attacks on defended clients leaves open; `planned`: they were made for them."""
    names = "; ".join(dict.fromkeys(map(label, attacks)))
    knows = "each knows the defence" if planned else "of the round without the defence, known when it was read"
    made = "" if planned else "a model made for defended clients, "
    return f"Tried: {names}; {knows}. Not tried: {made}inversion, more rounds."


def setting(model: str, clients: int, protocol: Protocol, secure: bool) -> str:
    """What was audited, in a sentence without its full stop."""
    what = f"one gradient of {protocol.batch_size} images (FedSGD)"
    if isinstance(protocol, FedAvg):
        steps = f"{counted(protocol.local_steps, 'step')} of {protocol.batch_size} images"
        what = f"the change of its weights over {steps} with learning rate {protocol.lr:g} (FedAvg)"
    seen = "; the server sees only their sum (secure aggregation)" if secure else ""
    return f"The model {model}; {counted(clients, 'client')}, each sending {what}{seen}"


def next_steps(found: Audit) -> Iterator[str]:
    """What whoever runs the federation can do now, the most useful first; a sentence or two each."""
    changed = found.attacks[found.attacks["changes"] != "nothing"]
    honest = found.attacks[found.attacks["changes"] == "nothing"]
    tested = changed[changed["refused"] != NOT_TESTED]
    warned = int((tested["refused"] != "").sum())
    yield (
        "Treat updates as you treat the images themselves: who may read them, how long they are kept, how they are "
        "sent. They can be turned into images, as above."
        if found.attacks["leak_rate"].max() > 0
        else "Treat updates as you treat the images themselves, until somebody shows that you need not: that nothing "
        "was found here is no proof."
    )
    if len(changed) and changed["leak_rate"].max() > 0:
        told = f"the tests warn of {warned} of the {len(tested)} changed models that were tried"
        told = told if len(tested) else "here a client has one image, too few for the tests"
        yield (
            f"Let clients test every model before they train it: {told} (`leaklearn.federated.detection.inspect`). "
            "Other changes may pass; fix the architecture in the clients' code as well."
        )
    yield from _defences(found)
    if len(honest) and honest["leak_rate"].max() > 0:
        yield "An honest server reads images, too: larger batches help, and so do noise and sums of many clients."
    yield (
        "Change one thing and audit again: a larger batch, more local steps (FedAvg), sums over the clients (secure "
        "aggregation), another model. Repeat it whenever the model or the data change."
    )
    yield (
        "Look at what really goes out: `leaklearn audit update before.safetensors after.safetensors --model ...` tells "
        "of one update whether noise, clipping or rounding is in it."
    )


def _defences(found: Audit) -> Iterator[str]:
    if not len(found.defences):
        return
    before = found.attacks["leak_rate"].max()
    helped = found.defences[found.defences["leak_rate"] <= HELPS * before] if before > 0 else found.defences[:0]
    if len(helped):
        told = [(row["defence"], in_percent(row)) for _, row in helped.iterrows()]
        each = [f"{defence} (left: {rate} %, at most {high})" for defence, (rate, _, high) in told]
        text = f"Of the defences tried, these took at least half of the leak away: {'; '.join(each)}. "
        yield text + "Each costs accuracy: train once with it before you rely on it."
    elif before > 0:
        yield "None of the defences that were tried took half of the leak away: do not rely on them."


def share_of(count: int, of: int) -> dict[str, float]:
    """Leak rate with its 95 % interval (Wilson, JASA 1927), and the number of images."""
    ends = binomtest(count, of).proportion_ci(method="wilson")
    return {"leak_rate": count / of, "low": float(ends.low), "high": float(ends.high), "images": of}


def percent(row: pd.Series) -> str:
    """A row's leak rate with its interval, and the attack, in words."""
    rate, low, high = in_percent(row)
    return f"{rate} % [{low}, {high}] of the images ({label(row['attack'])})"


def in_percent(row: pd.Series | dict) -> tuple[str, str, str]:
    """A row's leak rate and the ends of its interval in percent; some of many thousands are not rounded to none."""
    digits = 2 if 0 < row["leak_rate"] < 0.01 or row["high"] < 0.01 else 0
    shown = [100 * row[name] for name in ("leak_rate", "low", "high")]
    rate, low, high = (f"{value:.{digits}f}" if value else "0" for value in shown)
    return rate, low, high

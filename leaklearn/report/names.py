"""One place for what figures, tables and texts call things: label, colour and marker of attacks, sources, networks.

Keys are the values that tables hold. What is not here (a new preset of an attack, say) is called by its own name and
takes the next colour and marker; its source comes from the attack object itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from leaklearn.attacks.catalogue import source_of
from leaklearn.data.catalogue import entry

# M. Okabe and K. Ito, "Color Universal Design", 2008.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
}
PAPER_COLOUR = "#7A7A7A"
"""Of the paper's numbers and of closed forms."""
MARKERS = "osD^vPX*"


class Name(NamedTuple):
    """How a key is written and drawn."""

    label: str
    colour: str
    marker: str


_BLUE, _ORANGE, _GREEN, _VERMILION, _PURPLE, _SKY, _BLACK = PALETTE.values()

_NAMES: dict[str, Name] = {
    # sources of a model
    "fedavg": Name("federated", _BLACK, "v"),
    "gi": Name("leaked (GI)", _ORANGE, "s"),
    "lll": Name("leaked (LLL, true labels)", _BLUE, "o"),
    "centralised": Name("centralised", _GREEN, "D"),
    "same_images": Name("the inverted images themselves", _VERMILION, "X"),
    # linear layer leakage
    "loki": Name("LOKI", _BLUE, "o"),
    "robbing_the_fed": Name("Robbing the Fed", _VERMILION, "s"),
    "robbing_the_fed_bounded": Name("Robbing the Fed, bounded bins", _ORANGE, "D"),
    "robbing_the_fed_kernel": Name("Robbing the Fed, kernel estimate (ours)", _SKY, "P"),
    "robbing_the_fed_random": Name("Robbing the Fed, another measurement each round", _ORANGE, "D"),
    "loki_kernel": Name("LOKI, kernel estimate (ours)", _GREEN, "X"),
    "trap_weights": Name("trap weights", _PURPLE, "^"),
    "own_layer": Name("traps in the model's own layer (ours)", _SKY, "P"),
    "qbi_published": Name("QBI, published bias", _SKY, "v"),
    "qbi_normal": Name("QBI, mean and spread of each neuron", _GREEN, "P"),
    "qbi_quantiles": Name("QBI, quantile of each neuron", _BLUE, "X"),
    "adaptive": Name("adaptive bins", _BLUE, "o"),
    "split_bins": Name("bins, neurons of two split (ours)", _SKY, "D"),
    "peeled_bins": Name("bins of several measurements, peeled (ours)", _GREEN, "*"),
    "robbing_the_fed_split": Name("Robbing the Fed, neurons of two split (ours)", _SKY, "d"),
    "trap_weights_split": Name("trap weights, neurons of two split (ours)", _ORANGE, "d"),
    "qbi_quantiles_split": Name("QBI, quantiles, neurons of two split (ours)", _PURPLE, "d"),
    "peeled_loki": Name("LOKI's blocks of several measurements, peeled (ours)", _PURPLE, "P"),
    "peeled_bins_unsplit": Name("peeled without splitting (ours)", _PURPLE, "h"),
    "peeled_honest": Name("honest first layer, peeled", _BLUE, "s"),
    "soliton_free": Name("soliton degrees without data, peeled", _SKY, "p"),
    "soliton_data": Name("soliton degrees by public images, peeled", _ORANGE, "H"),
    "spear": Name("SPEAR, sampling, as published", _VERMILION, "s"),
    "spear_reweighted": Name("SPEAR, reweighted least squares", _BLUE, "o"),
    # gradient inversion
    "dlg": Name("DLG", _BLUE, "o"),
    "idlg": Name("iDLG", _SKY, "s"),
    "inverting_gradients": Name("Inverting Gradients", _VERMILION, "D"),
    "inverting_gradients_light": Name("Inverting Gradients,\nTV 1e-4", _BLACK, "P"),
    "gradinversion": Name("GradInversion", _PURPLE, "^"),
    "modern": Name("modern", _GREEN, "v"),
    "gradient_inversion": Name("gradient inversion", _ORANGE, "s"),
    "fast": Name("fast (ours)", _ORANGE, "s"),
    "exact": Name("exact (ours)", _BLUE, "*"),
    # networks
    "lenet": Name("LeNet", _BLUE, "o"),
    "convnet": Name("ConvNet", _ORANGE, "s"),
    "resnet18": Name("ResNet-18", _GREEN, "D"),
    "convnet-relu": Name("ReLU ConvNet", _VERMILION, "^"),
    "convnet-gelu": Name("GELU ConvNet", _PURPLE, "v"),
    # label restoration
    "bias_corrected": Name("bias-corrected", _ORANGE, "D"),
    "ilrg": Name("iLRG", _GREEN, "^"),
    "rlu": Name("RLU", _VERMILION, "v"),
    "joint": Name("joint (ours)", _PURPLE, "P"),
    "auto": Name("auto (ours)", _SKY, "X"),
    # label matching
    "regression": Name("last-layer regression", _ORANGE, "s"),
    "bin_scan": Name("bin-gradient scan", _SKY, "D"),
    "combined": Name("both combined", _BLUE, "o"),
    "combined_sure": Name("both combined, sure labels only", _GREEN, "P"),
    "combined+counts": Name("both, within restored counts", _PURPLE, "^"),
    "true_labels": Name("true labels", _BLACK, "D"),
    "matched": Name("matched labels, all", _BLUE, "o"),
    "matched_confident": Name("matched labels, confident ones only", _GREEN, "P"),
    # learning from few labels, and from the federated model
    "labelled_only": Name("labelled images alone", _BLACK, "v"),
    "fixmatch": Name("FixMatch", _VERMILION, "s"),
    "freematch": Name("FreeMatch", _GREEN, "^"),
    "comatch": Name("CoMatch", _PURPLE, "o"),
    "all_labels": Name("the leak with all labels", _BLUE, "D"),
    "scratch": Name("from scratch", _BLUE, "o"),
    "fedavg_partly": Name("from a partly trained one", _VERMILION, "s"),
    # clients that hold different classes
    "lll_own_bins": Name("one step, counted with bins fitted to each client", _PURPLE, "^"),
    "lll_by_labels": Name("one step, predicted from the labels", _BLACK, "X"),
    "lll_local_steps": Name("LOKI on the federation's local steps", _SKY, "D"),
    "lll_silent": Name("local steps, counted as if every used bin became inactive", _GREEN, "P"),
    "labels_untrained": Name("labels of whole batches, network untrained", _GREEN, "^"),
    "labels_trained": Name("labels of whole batches, network trained by the federation", _PURPLE, "v"),
    # blanks beside a quality
    "mean_colour": Name("blank: the image's own mean colour", _BLACK, "x"),
    "mean_image": Name("blank: the mean of the attacker's images", _SKY, "+"),
    # measures of quality
    "psnr": Name("PSNR", _BLUE, "o"),
    "ssim": Name("SSIM", _ORANGE, "s"),
    "perceptual": Name("perceptual distance", _GREEN, "D"),
    "feature": Name("feature distance", _PURPLE, "^"),
    "reach": Name("within reach of any measure", _BLACK, "X"),
    "right": Name("right labels", _BLUE, "o"),
    "wrong": Name("wrong labels", _VERMILION, "X"),
    "poor": Name("poor ones, right labels", _BLUE, "o"),
    "wrong_labels": Name("the same, wrong labels", _VERMILION, "X"),
    "clean": Name("the true images instead", _GREEN, "D"),
    # defences
    "none": Name("none", _BLACK, "*"),
    "clip": Name("clipping", _SKY, "o"),
    "dp_sgd": Name("DP-SGD noise", _BLUE, "o"),
    "client_noise": Name("client-level noise", _SKY, "s"),
    "top_k": Name("top-k", _ORANGE, "o"),
    "sign": Name("signs only", _ORANGE, "D"),
    "quantise": Name("quantised", _ORANGE, "s"),
    "half": Name("16-bit floats", _SKY, "p"),
    "soteria": Name("Soteria", _PURPLE, "o"),
    "larger_batch": Name("larger batch", _GREEN, "o"),
    "local_steps": Name("local steps", _GREEN, "s"),
    "secure_aggregation": Name("secure aggregation", _VERMILION, "o"),
    "detection": Name("detection", _VERMILION, "s"),
    # data sets
    "mnist5k": Name("mnist5k", _BLUE, "o"),
    "photos": Name("photographs", _SKY, "P"),
    "mnist": Name("MNIST", _ORANGE, "s"),
    "fashion_mnist": Name("Fashion-MNIST", _GREEN, "D"),
    "cifar10": Name("CIFAR-10", _VERMILION, "^"),
    "tinyimagenet": Name("Tiny ImageNet", _PURPLE, "v"),
    "tinyimagenet-100": Name("Tiny ImageNet, 100 classes", _PURPLE, "v"),
    "paper": Name("the paper's numbers", PAPER_COLOUR, "X"),
    "fedsgd": Name("FedSGD", _BLUE, "o"),
    "fedavg+secagg": Name("FedAvg, sum over clients", _VERMILION, "s"),
    "fedsgd+secagg": Name("FedSGD, sum over clients", _ORANGE, "D"),
}


def name(key: object, place: int = 0) -> Name:
    """How a key is written and drawn; an unknown one by itself, with the colour and marker of its `place`."""
    known = _NAMES.get(str(key))
    if known is not None:
        return known
    colours = list(PALETTE.values())[:-1]
    text = f"{key:g}" if isinstance(key, float) else str(key)
    return Name(text, colours[place % len(colours)], MARKERS[place % len(MARKERS)])


def label(key: object) -> str:
    """How a key is written."""
    return name(key).label


def colour(key: object) -> str:
    """How a key is coloured."""
    return name(key).colour


def sources(keys: Iterable[object]) -> list[str]:
    """Where the attacks among these keys are published, each source once."""
    found = (source_of(str(key)) for key in keys)
    return list(dict.fromkeys(text for text in found if text))


class Measure(NamedTuple):
    """A column that is measured: how it is written, its unit, and the range that it cannot leave."""

    label: str
    unit: str = ""
    bounds: tuple[float, float] | None = None


_SHARE, _POSITIVE = (0.0, 1.0), (0.0, inf)
_MEASURES: dict[str, Measure] = {
    "accuracy": Measure("test accuracy", "%", _SHARE),
    "accuracy_of_leak": Measure("accuracy of a model trained on the leak", "%", _SHARE),
    "accuracy_of_federation": Measure("accuracy of the federation", "%", _SHARE),
    "leak_rate": Measure("leaked images", "%", _SHARE),
    "expected_leak_rate": Measure("closed form", "%", _SHARE),
    "expected_in_bins": Measure("closed form for the bins as they are", "%", _SHARE),
    "label_accuracy": Measure("right labels", "%", _SHARE),
    "exact": Measure("exact images (60 dB or more)", "%", _SHARE),
    "readable": Measure("readable images", "%", _SHARE),
    "psnr": Measure("PSNR", "dB"),
    "psnr_median": Measure("median PSNR", "dB"),
    "psnr_of_mean_colour": Measure("PSNR of the image's own mean colour", "dB"),
    "psnr_of_mean_image": Measure("PSNR of the mean of the attacker's images", "dB"),
    "ssim": Measure("SSIM", "", (-1.0, 1.0)),
    "correlation": Measure("rank correlation", "", (-1.0, 1.0)),
    "gap": Measure("leak rate less the closed form", "points"),
    "explained": Measure("explained by the bins' masses", "points"),
    "gain": Measure("gain over the model itself", "points"),
    "over_scratch": Measure("gain over training from scratch", "points"),
    "leaked_images": Measure("leaked images", "", _POSITIVE),
    "labels_per_class": Measure("images of each class that the attacker labels", "", _POSITIVE),
    "seconds": Measure("seconds", "s", _POSITIVE),
    "seconds_per_image": Measure("seconds an image", "s", _POSITIVE),
    "seconds_per_iteration": Measure("seconds an iteration", "s", _POSITIVE),
    "days_for_50k": Measure("days for 50,000 images", "days", _POSITIVE),
    "images": Measure("images", "", _POSITIVE),
    "fc_factor": Measure("neurons per image (FC factor)"),
    "epsilon": Measure("ε", "", _POSITIVE),
}


def measure(column: str) -> Measure:
    """What a measured column is; a share (0..1) also by the end of its name, such as `_rate` or `_accuracy`."""
    known = _MEASURES.get(column)
    if known is not None:
        return known
    text = column.replace("_", " ")
    if column.startswith("accuracy") or column.endswith(("_accuracy", "_rate", "_share", "readable")):
        return Measure(text, "%", _SHARE)
    if column.endswith(("images", "seconds", "positives", "duplicates", "_mib")):
        return Measure(text, "", _POSITIVE)
    return Measure(text)


def size_of_test_set(dataset: object) -> int | None:
    """How many test images the accuracies on a data set are measured on; None for one that is not in the catalogue."""
    name, _, classes = str(dataset).partition("-")
    try:
        found = entry(name)
    except ValueError:
        return None
    return found.test * int(classes) // found.num_classes if classes.isdigit() else found.test

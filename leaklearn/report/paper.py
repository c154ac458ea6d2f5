"""What the paper says, as data: its claims C1 to C10 and its numbers P1 to P7, and which notebook tests each.

Source: J. C. Zhao, A. Dabholkar, A. Sharma, S. Bagchi, "Leak and Learn", CVPR 2024, arXiv 2403.18144. All its numbers
that we know are here, and all are for CIFAR-10; no other number in this project is the paper's.
"""

from dataclasses import dataclass

DATASET = "cifar10"


@dataclass(frozen=True)
class Statement:
    """A claim or a number of the paper.

    Parameters
    ----------
    id : str
        `C1` to `C10` for claims, `P1` to `P7` for numbers.
    text : str
        What it says.
    paper : str
        The paper's figure with its unit and how sure we are of it; empty when we know none.
    notebook, figure : str
        The notebook that tests it, and the figure of this that shows it best.
    """

    id: str
    text: str
    paper: str
    notebook: str
    figure: str


CLAIMS = (
    Statement(
        "C1",
        "Leaked data train better models than benign FL: FL < GI-leaked ≤ LLL-leaked (ideal labels) ≤ centralised.",
        "72.76 < 90.34 ≤ 93.16 % ≤ unknown",
        "03_training_on_leaked_data",
        "accuracy",
    ),
    Statement(
        "C2",
        "GI: quality and downstream accuracy fall as the batch grows.",
        "27.88 dB at batch size 4",
        "01_gradient_inversion",
        "quality",
    ),
    Statement("C3", "GI: the cost is enormous; how far can it be cut?", "61.17 days", "01_gradient_inversion", "cost"),
    Statement(
        "C4",
        "LLL: the leak rate depends on FC factor, clients and local steps as the closed form says.",
        "78.93 / 76.61 / 75.15 % for FC sizes 4, 2, 1 (meaning doubtful)",
        "02_linear_layer_leakage",
        "leak_rate",
    ),
    Statement(
        "C5",
        "Poor reconstructions with correct labels still help; PSNR and SSIM rank usefulness badly.",
        "",
        "07_reconstruction_quality",
        "accuracy",
    ),
    Statement("C6", "CoMatch recovers most of what missing labels cost.", "", "05_semi_supervised", "accuracy"),
    Statement("C7", "A small leak improves the federated model.", "", "06_federated_initialisation", "accuracy"),
    Statement("C8", "FedAvg's local steps: what leaks and what it is worth.", "", "04_fedavg", "local_steps"),
    Statement(
        "C9",
        "Quality depends on batch size, class, repeated labels, training stage and iterations.",
        "",
        "08_quality_trends",
        "inversion",
    ),
    Statement("C10", "Non-IID clients change both attacks.", "", "10_non_iid", "non_iid"),
)

NUMBERS = (
    Statement("P1", "Accuracy of the benign FL model.", "72.76 % (derived)", "03_training_on_leaked_data", "accuracy"),
    Statement(
        "P2",
        "Accuracy when trained on GI-leaked data, ideal conditions.",
        "90.34 % (summary)",
        "03_training_on_leaked_data",
        "accuracy",
    ),
    Statement(
        "P3",
        "Accuracy when trained on LLL-leaked data, ideal conditions.",
        "93.16 % (summary)",
        "03_training_on_leaked_data",
        "accuracy",
    ),
    Statement(
        "P4", "PSNR of GI reconstructions at batch size 4.", "27.88 dB (summary)", "01_gradient_inversion", "quality"
    ),
    Statement(
        "P5",
        "Time to invert CIFAR-10 at batch size 4 on one A100.",
        "61.17 days (number sure, reading inferred)",
        "01_gradient_inversion",
        "cost",
    ),
    Statement(
        "P6",
        "Images leaked by LLL for FC sizes of 4, 2 and 1 units per image.",
        "78.93 / 76.61 / 75.15 % (numbers sure, meaning doubtful)",
        "02_linear_layer_leakage",
        "leak_rate",
    ),
    Statement(
        "P7",
        "GI can breach privacy at batch size 100.",
        "batch size 100 (summary)",
        "01_gradient_inversion",
        "reconstructions",
    ),
)

# Percent accuracy by source of the training data: P1, P2, P3.
ACCURACY = {"P1": ("fedavg", 72.76), "P2": ("gi", 90.34), "P3": ("lll", 93.16)}

# P6: percent leaked by FC units per image.
LEAKED = {4: 78.93, 2: 76.61, 1: 75.15}

# P4: mean PSNR in dB of GI reconstructions, by batch size. The network is unknown.
PSNR = {4: 27.88}

# P5: days to invert CIFAR-10 (read as its 50,000 training images) on one A100, by batch size. The network is unknown.
DAYS = {4: 61.17}

# P7: the batch size at which GI can still breach privacy.
BREACHED_BATCH = 100

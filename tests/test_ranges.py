"""Every parameter of every notebook has a range, and what is out of it is refused before the first notebook starts."""

import pytest
import yaml

from leaklearn import cli, parameters, ranges
from leaklearn.attacks.catalogue import LINEAR
from leaklearn.attacks.inversion.presets import PRESETS
from leaklearn.data.catalogue import CATALOGUE
from leaklearn.files import REPOSITORY, Paths
from leaklearn.learning.train import PRECISIONS
from leaklearn.models import ACTIVATIONS, ARCHITECTURES, NORMS, VARIANTS

NOTEBOOKS = REPOSITORY.notebook_names()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_parameter_has_a_range_that_its_default_keeps(notebook):
    declared = parameters.read(REPOSITORY.notebook(notebook))
    ranges.check(notebook, {name: each.default for name, each in declared.items()})
    numbers = {name for name, each in declared.items() if "int" in each.type or "float" in each.type}
    texts = {name for name, each in declared.items() if "str" in each.type} - {"preset", "device"}
    own = f"{notebook[:2]}."
    assert {name for name in numbers if not {name, own + name} & set(ranges._INTERVAL_OF)} == set()
    assert {name for name in texts if not {name, own + name} & set(ranges._CHOICES_OF)} == set()


def test_what_the_notebooks_are_tested_with_is_in_range():
    for notebook in NOTEBOOKS:
        about = yaml.safe_load((REPOSITORY.root / "tests" / "parameters" / f"{notebook}.yaml").read_text())
        usual = {name: each.default for name, each in parameters.read(REPOSITORY.notebook(notebook)).items()}
        for name, value in about["changes"].items():
            ranges.check(notebook, usual | about["tiny"] | {name: value})


def test_no_range_is_of_a_parameter_that_is_no_more():
    there = {
        name
        for notebook in NOTEBOOKS
        for each in parameters.read(REPOSITORY.notebook(notebook))
        for name in (each, f"{notebook[:2]}.{each}")
    }
    told = [*ranges._INTERVAL_OF, *ranges._CHOICES_OF, *ranges.AT_MOST, *ranges.FILLED, *ranges.ONE_FOR_EACH]
    assert set(told) <= there
    for table in (ranges.INTERVALS, ranges.CHOICES):
        names = " ".join(table.values()).split()
        assert len(names) == len(set(names))


def test_choices_are_those_of_the_catalogues():
    known = [set(choices.split()) for choices in ranges.CHOICES]
    networks = {*ARCHITECTURES, *VARIANTS}
    for catalogue in (CATALOGUE, networks, PRESETS, LINEAR, ACTIVATIONS, NORMS, {"auto", *PRECISIONS.values()}):
        assert set(catalogue) in known


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("epochs=[]", "epochs is []; give at least one value"),
        ("seeds=[]", "seeds is []; give at least one value"),
        ("seeds=[0, 0, 0]", "seeds is [0, 0, 0]; give each value once"),
        ("seeds=[0, -1]", "seeds is [0, -1]; each value is at least 0 and at most 4294967295"),
        ("images_per_client=0", "images_per_client is 0; it is at least 1"),
        ("seed=-1", "seed is -1; it is at least 0"),
        ("lr=1e999", "lr is inf; give finite numbers"),
        ("fc_factor=0", "fc_factor is 0; it is above 0"),
        ("crop=1.5", "crop is 1.5; it is above 0 and at most 1"),
        ("ema=1", "ema is 1; it is at least 0 and below 1"),
        ("threads=0", "threads is 0; it is at least 1"),
        ("client=20", "client is 20; it is below clients, which is 20"),
        ("clients_per_round=61", "clients_per_round is 61; it is at most clients, which is 60"),
        ("model=lenett", "model is 'lenett'; did you mean 'lenet'?"),
        ("datasets=[mnist5k, imagenet]", "datasets is ['mnist5k', 'imagenet']; did you mean 'tinyimagenet'?"),
        ("rounds=[1, 2]", "rounds is [1, 2]; give one value for each of 1 data sets, or a single one for all"),
        ("device=gpu", "device is 'gpu'; choose cpu or cuda"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line_before_any_work(assignment, told, tmp_path, capsys):
    (tmp_path / "notebooks").symlink_to(REPOSITORY.notebooks)
    only = ["--only", "03"] if assignment.startswith(("rounds", "clients_per_round", "epochs")) else []
    assert cli.main(["reproduce", "--preset", "smoke", *only, "--set", assignment], Paths(tmp_path)) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("device", "told"), [("cuda", "finds no CUDA GPU"), ("cuda:3", "there are 2 CUDA GPUs")])
def test_a_gpu_that_is_not_there_is_refused(device, told, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: device != "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=told):
        ranges.check("00_overview", {"device": device})
    if device != "cuda":
        ranges.check("00_overview", {"device": "cuda:1"})


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r"seeds is \[0, 0, .*…; give each value once") as caught:
        ranges.check("02_x", {"seeds": [0] * 10_000})
    assert len(str(caught.value)) < 200

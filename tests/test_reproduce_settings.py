"""What is refused before any notebook starts, and what the notebooks are given otherwise."""

import pytest
from tiny_project import add_notebook, make, write_preset

from leaklearn import parameters
from leaklearn.runner.plan import plan, presets


@pytest.fixture
def paths(tmp_path):
    made = make(tmp_path)
    add_notebook(made, "00_first")
    add_notebook(made, "01_second", parameters='preset: str = "smoke"\nname: str = "a"  # a name\nlr: float = 1e-3\n')
    return made


def refusal(paths, preset="laptop", only=(), assignments=()):
    with pytest.raises(ValueError, match=r".") as caught:
        plan(preset, only, assignments, paths)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_parameters_are_read_without_running(paths):
    read = parameters.read(paths.notebook("00_first"))
    assert list(read) == ["preset", "rate", "steps", "flag", "seeds"]
    assert read["seeds"].type == "list[int]"
    assert read["seeds"].default == [0, 1]
    assert read["rate"].help == "a rate"


@pytest.mark.parametrize("source", ["steps: int = len('abc')", "import os", "a = b = 1", "steps: int", "x ="])
def test_only_literals_are_parameters(source):
    with pytest.raises(ValueError, match=r"parameter"):
        parameters.parse(source)


def test_the_preset_is_injected_and_only_differences_are_given(paths):
    write_preset(paths, "laptop", "00_first", "preset: laptop\nsteps: 7\n")
    first, second = plan("laptop", [], [], paths)
    assert first.parameters == {"preset": "laptop", "steps": 7}
    assert second.parameters == {"preset": "laptop"}
    assert plan("smoke", ["00"], [], paths)[0].parameters == {"preset": "smoke"}


def test_folders_of_params_are_presets(paths):
    (paths.params / "mine").mkdir()
    assert presets(paths) == ["smoke", "laptop", "mine", "paper"]


def test_unknown_preset_names_the_nearest(paths):
    assert "did you mean 'laptop'?" in refusal(paths, preset="lptop")


def test_unknown_notebook_names_the_nearest(paths):
    assert "did you mean '01_second'?" in refusal(paths, only=["01_secnd"])
    assert "valid: 00_first, 01_second" in refusal(paths, only=["0"]) or "did you mean" in refusal(paths, only=["0"])


def test_a_beginning_that_fits_one_notebook_is_enough(paths):
    assert [job.notebook for job in plan("laptop", ["01"], [], paths)] == ["01_second"]


def test_unknown_parameter_names_the_nearest(paths):
    write_preset(paths, "laptop", "00_first", "stepz: 7\n")
    message = refusal(paths)
    assert "params/laptop/00_first.yaml" in message
    assert "did you mean 'steps'?" in message


def test_a_mistake_in_the_last_notebook_stops_the_first(paths):
    write_preset(paths, "laptop", "01_second", "nome: b\n")
    assert "did you mean 'name'?" in refusal(paths)
    assert plan("laptop", ["00"], [], paths)  # files of notebooks that were not chosen are not in the way


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("steps: 2.0", "steps must be int, not 2.0 (float)"),
        ("steps: true", "steps must be int, not True (bool)"),
        ("rate: true", "rate must be float, not True (bool)"),
        ("flag: 1", "flag must be bool, not 1 (int)"),
        ("seeds: 3", "seeds must be list[int], not 3 (int)"),
        ("seeds: [0, 1.5]", "seeds must be list[int]"),
        ("seeds: [0, true]", "seeds must be list[int]"),
        ("rate: null", "rate must be float, not None"),
    ],
)
def test_wrong_types_are_refused(paths, line, expected):
    write_preset(paths, "laptop", "00_first", line)
    assert expected in refusal(paths)


def test_a_float_without_a_dot_gets_a_hint(paths):
    write_preset(paths, "laptop", "00_first", "rate: 1e-3")
    message = refusal(paths)
    assert "not '1e-3' (str)" in message
    assert "dot" in message


def test_an_int_is_a_float(paths):
    write_preset(paths, "laptop", "00_first", "rate: 1")
    assert plan("laptop", ["00"], [], paths)[0].parameters["rate"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: 1\nrate: 0.1\nsteps: 2", "steps is given twice"),
        ("steps: 010", "010 is no plain finite number"),
        ("steps: 1:30", "1:30 is no plain finite number"),
        ("rate: 1:30.5", "1:30.5 is no plain finite number"),
        ("rate: .nan", ".nan is no plain finite number"),
        ("rate: -.inf", "-.inf is no plain finite number"),
        ("rate: 1.0e+999", "1.0e+999 is no plain finite number"),
        ("steps: 2024-13-45", "steps must be int, not '2024-13-45' (str)"),
        ("seeds: &a [1]\nsteps: *a", "*a refers to another value"),
        (f"seeds: {'[' * 2000}{']' * 2000}", "too deep"),
        ("? [1]\n: 2", "unhashable"),
        ("steps: !!python/object/apply:os.getpid []", "could not determine a constructor"),
    ],
)
def test_yaml_of_two_meanings_or_none_is_refused_by_file_and_value(paths, text, told):
    write_preset(paths, "laptop", "00_first", text)
    message = refusal(paths)
    assert "params/laptop/00_first.yaml" in message
    assert told in message


def test_plain_numbers_of_yaml_are_read(paths):
    write_preset(paths, "laptop", "00_first", "steps: 1_000\nrate: 2.5e-3\nseeds: [0, 0x10, +7]")
    assert plan("laptop", ["00"], [], paths)[0].parameters == {
        "preset": "laptop", "steps": 1000, "rate": 2.5e-3, "seeds": [0, 16, 7],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["00_first.yml", "00_first.YAML", "01_second.Yml"])
def test_a_parameter_file_that_would_not_be_read_is_refused(paths, name):
    (paths.params / "laptop" / name).write_text("steps: 7\n")
    assert f"params/laptop/{name} is not read: rename it to {name[:-4].rstrip('.')}.yaml" in refusal(paths, only=["00"])


@pytest.mark.parametrize("name", ["my preset", "é", "a+b"])
def test_a_preset_whose_results_could_have_no_folder_is_refused(paths, name):
    (paths.params / name).mkdir()
    assert f"params/{name} cannot be a preset's folder" in refusal(paths, preset=name)


def test_hidden_folders_are_no_presets(paths):
    (paths.params / ".ipynb_checkpoints").mkdir()
    assert presets(paths) == ["smoke", "laptop", "paper"]


@pytest.mark.parametrize("text", ["steps: [1", "- 1\n- 2\n", "just words"])
def test_yaml_that_is_no_mapping_is_refused(paths, text):
    write_preset(paths, "laptop", "00_first", text)
    assert "params/laptop/00_first.yaml" in refusal(paths)


def test_a_file_of_no_notebook_is_refused(paths):
    write_preset(paths, "laptop", "00_frist", "steps: 1")
    assert "did you mean '00_first'?" in refusal(paths)


def test_another_preset_in_the_file_is_refused(paths):
    write_preset(paths, "laptop", "00_first", "preset: paper")
    assert "preset must be 'laptop'" in refusal(paths)


def test_set_goes_to_the_notebooks_that_have_the_parameter(paths):
    write_preset(paths, "laptop", "00_first", "steps: 7\n")
    first, second = plan("laptop", [], ["steps=9", "rate=1e-3", "seeds=[4, 5]", "flag=true", "name=1e-3"], paths)
    assert first.parameters == {"preset": "laptop", "steps": 9, "rate": 1e-3, "seeds": [4, 5], "flag": True}
    assert second.parameters == {"preset": "laptop", "name": "1e-3"}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("stepz=1", "did you mean 'steps'?"),
        ("steps=many", "steps must be int, not 'many'"),
        ("steps", "name=value"),
        ("preset=paper", "--preset"),
        ("seeds={[]: 1}", "--set: seeds must be list[int]"),
        (f"seeds={'[' * 2000}{']' * 2000}", "too deep"),
        ("seeds=2024-13-45", "seeds must be list[int], not '2024-13-45' (str)"),
        (f"steps={'9' * 5000}", "--set: steps must be int"),
        ("steps=010", "--set: steps must be int, and '010' is none"),
        ("steps=1 2", "steps must be int, not '1 2'"),
    ],
)
def test_wrong_assignments_are_refused(paths, assignment, expected):
    assert expected in refusal(paths, assignments=[assignment])


@pytest.mark.parametrize(
    "words", [["seeds=[4,", "5]", "steps=9"], ["seeds=[4, 5] steps=9"], ["seeds=[4, 5]", "steps=9"]]
)
def test_an_assignment_that_a_shell_has_cut_is_put_together(paths, words):
    first, _ = plan("laptop", [], words, paths)
    assert first.parameters == {"preset": "laptop", "seeds": [4, 5], "steps": 9}


def test_a_parameter_of_a_notebook_that_was_not_chosen_is_refused(paths):
    assert "'steps'" in refusal(paths, only=["01"], assignments=["steps=1"])


def test_a_damaged_notebook_is_refused(paths):
    paths.notebook("02_bad").write_text("{")
    assert "02_bad" in refusal(paths)

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
    ],
)
def test_wrong_assignments_are_refused(paths, assignment, expected):
    assert expected in refusal(paths, assignments=[assignment])


def test_a_parameter_of_a_notebook_that_was_not_chosen_is_refused(paths):
    assert "'steps'" in refusal(paths, only=["01"], assignments=["steps=1"])


def test_a_damaged_notebook_is_refused(paths):
    paths.notebook("02_bad").write_text("{")
    assert "02_bad" in refusal(paths)

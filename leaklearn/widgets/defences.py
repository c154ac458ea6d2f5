"""Explorer of notebook 11: defences, what they leave of a leak, and what they cost."""

from __future__ import annotations

import ipywidgets as widgets
from matplotlib.figure import Figure

from leaklearn.experiments.defences import DefenceStudy
from leaklearn.experiments.defended_federation import NO_DEFENCE, Case
from leaklearn.report.figures_clients import attack_names, defended_pictures
from leaklearn.report.names import label
from leaklearn.report.tables import told
from leaklearn.widgets.parts import choices, explorer, menu


def explore_defence(study: DefenceStudy) -> widgets.VBox:
    """Pick an attack and a defence, slide its strength: the reconstructions, what they are worth, and the federation.

    Parameters
    ----------
    study
        What `leaklearn.experiments.defences.study_defences` measured; nothing is computed anew.

    Returns
    -------
    ipywidgets.VBox
        Two dropdowns, a slider over the measured strengths, a line of text and a picture. It begins with the defence
        that was measured at most strengths.
    """
    table, strengths = study.table, {}
    for name, value in dict.fromkeys(zip(study.table["defence"], study.table["strength"], strict=True)):
        strengths.setdefault(name, []).append((str(Case(name, value)), value))
    names = attack_names(table)
    attack = menu("attack", [(text, name) for name, text in names.items()])
    defences = [name for name in strengths if name != NO_DEFENCE.defence] or [NO_DEFENCE.defence]
    defence = menu("defence", [(label(name), name) for name in defences])
    defence.value = max(defences, key=lambda name: len(strengths[name]))
    strength = choices("strength", strengths[defence.value])

    def view() -> tuple[str, Figure]:
        if list(strength.options) != strengths[defence.value]:  # another defence: its own strengths, from the first
            strength.options = strengths[defence.value]
        case = Case(defence.value, strength.value)
        keys = {"defence": case.defence, "strength": case.strength, "attack": attack.value}
        columns = ("leak_rate", "accuracy_of_leak", "accuracy_of_federation")
        rate, worth, federation = (told(table, column, **keys) for column in columns)
        line = f"{case} against {names[attack.value]}: {rate} % of the images leak, a model trained on the leak has "
        line += f"{worth} % accuracy, the federation {federation} %"
        return line, defended_pictures(study.outcomes, attack.value, [NO_DEFENCE, case])

    return explorer([attack, defence, strength], view)

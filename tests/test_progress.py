"""The live line of an evaluation stays one line, whatever the width of the terminal."""

import io
import re

import pytest
import rich.console

from tfrobust.evaluate.progress import Progress


@pytest.mark.parametrize("width", [80, 100, 140])
def test_one_line_with_figures_and_time_whole(width, monkeypatch):
    shown, console = io.StringIO(), rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console", lambda: console(file=shown, force_terminal=True, width=width)
    )
    with Progress(True, 10_000, "lenet [5]") as display:
        display.update(9999.5, 0.9889, 0.9012, "AutoAttack run 17/22 epsilon 0.3")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if "clean" in line]
    assert lines and all(len(line) <= width for line in lines)
    for piece in ("9,999 / 10,000", "clean 98.9 %", "robust 90.1 %", " left ", "AutoAttack run"):
        assert piece in lines[-1], piece
    assert ("lenet [5]" in lines[-1]) == (width >= 120)


def test_silent_where_nobody_looks(capsys):
    for shown in (False, True):  # pytest's output is no terminal
        with Progress(shown, None, "net") as display:
            display.update(3, None, None)
    assert capsys.readouterr().out == ""

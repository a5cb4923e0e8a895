"""The live line of an evaluation stays one line, whatever the width of the terminal."""

import io
import re

import pytest
import rich.console

from tfrobust.evaluate import progress
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


def test_a_line_a_minute_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 61.0, 61.0, 90.0])  # pytest's output is no terminal
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with Progress(True, 10, "net") as display:
        for robust in (0.5, 0.4, 0.3):
            display.update(3, 0.9, robust, "PGD-40")
    out, err = capsys.readouterr()
    assert out == "" and err == "3 / 10  clean 90.0 %  robust 40.0 %  PGD-40\n"


def test_silent_if_asked(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    with Progress(False, None, "net") as display:
        display.update(3, None, None)
    assert "".join(capsys.readouterr()) == ""

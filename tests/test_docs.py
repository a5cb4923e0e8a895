"""What README and the guides show, runs."""

import dataclasses
import pathlib
import re

import pytest

import tfrobust as tr

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if "```python" in page.read_text()]
LONG = ("verify.md", "diagnostics.md")  # of which the slow suite runs the code


def shorter(match):
    """Sixteen images, one bucket of an attack, instead of a hundred."""
    return f"{match[1]}=16" if match[1] else "[:16]"


def few(name, load=tr.data.load):
    """The data set with 256 training images."""
    data = load(name)
    return dataclasses.replace(data, x_train=data.x_train[:256], y_train=data.y_train[:256])


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p.name in LONG else p for p in PAGES],
    ids=lambda page: page.name,
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tr.data, "load", few)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = re.sub(r"(epochs|steps)=\d+", r"\1=2", "\n".join(blocks))  # as shown, less patience
    code = re.sub(r"\[:100\]|(max_examples)=100", shorter, code)
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})
    if page.name == "README.md":
        assert (tmp_path / "small.tflite").stat().st_size > 0


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=str)
def test_links_and_rooms_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    code = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    for room, name in re.findall(r"\btr\.([a-z]+)\.(\w+)", code):
        assert hasattr(getattr(tr, room), name), f"tr.{room}.{name}"


def test_readme_shows_the_two_commands_first():
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make demo") < readme.index("make test") < readme.index("```python")

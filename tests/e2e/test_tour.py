"""docs/tour.ipynb runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from albef_jax.config import load_config
from albef_jax.train import train

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def printed(notebook):
    """What its cells printed."""
    return "".join(output.get("text", "") for cell in notebook.cells
                   for output in cell.get("outputs", ()))


@pytest.mark.slow
def test_the_tour_runs_on_a_run_of_the_demo(tmp_path, monkeypatch):
    config = load_config(f"{ROOT}/configs/demo.py").unlock()
    config.data.source.size = 512
    config.update(steps=10, evals={})
    train(config.lock(), tmp_path / "run")
    monkeypatch.setenv("TOUR_RUN", str(tmp_path / "run"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT / "docs"}}).execute()
    assert "the same numbers within" in printed(notebook)


def test_the_tour_in_the_repository_shows_what_it_printed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert "the same numbers within" in printed(notebook) and "after: " in printed(notebook)
    assert sum("image/png" in output.get("data", {}) for cell in notebook.cells
               for output in cell.get("outputs", ())) == 3
    assert not [output for cell in notebook.cells for output in cell.get("outputs", ())
                if output.output_type == "error"]

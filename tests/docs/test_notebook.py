"""examples/compress.ipynb runs from its first cell to its last, and the outputs that are stored are those of a run."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "compress.ipynb"


def printed(notebook: object) -> list[str]:
    """What each cell of code prints."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]  # type: ignore[index]
    return ["".join(out.get("text", "") for out in cell["outputs"] if out.get("name") == "stdout") for cell in cells]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=":")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    stored = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=600).execute()
    told = printed(notebook)
    # Sizes follow from the config; what is measured may differ in its last digits from one processor to the next.
    assert told[:3] == stored[:3]
    measured, before = told[3].splitlines(), stored[3].splitlines()
    assert [line.split(":")[0] for line in measured] == [line.split(":")[0] for line in before]
    kl = {line.split(":")[0]: float(line.rpartition("teacher ")[2].split()[0]) for line in measured}
    assert kl["teacher"] == 0 and kl["distilled"] < kl["pruned"]
    assert told[4].startswith("It was a bright morning, and")

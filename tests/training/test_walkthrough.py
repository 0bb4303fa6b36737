"""examples/walkthrough.ipynb, run from the first cell to the last as Jupyter would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "walkthrough.ipynb"


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", ()))


@pytest.mark.timeout(300)
def test_every_cell_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    changes = {
        "MINUTES = 1 ": "MINUTES = 0.03 ",
        'OUT = Path("runs") / "walkthrough"': f"OUT = Path({str(tmp_path)!r})",
    }
    [setup] = [cell for cell in notebook.cells if all(old in cell.source for old in changes)]
    for old, new in changes.items():
        setup.source = setup.source.replace(old, new)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    text = "".join(map(printed, notebook.cells))
    assert "the same text: True" in text
    assert "succeeded" in text
    assert text.endswith("stopped\n")

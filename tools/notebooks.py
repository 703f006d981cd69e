"""The notebooks, run, and the pages of the site that they become.

    python tools/notebooks.py [NAME ...]

Runs docs/notebooks/*.ipynb from top to bottom, stores their outputs, and writes each as docs/notebooks/NAME.md with its
pictures. The tests run the same cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"


def main() -> int:
    """Run and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; all if none is named")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": FOLDER}},
        ).execute()
        for k, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{k}"
            cell.metadata.pop("execution", None)  # when it ran, which changes every time
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook.metadata["language_info"] = {"name": "python"}  # of the page's blocks of code
        nbformat.write(notebook, path)

        text, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": name})
        path.with_suffix(".md").write_text("\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n")
        for file, content in resources["outputs"].items():
            (FOLDER / file).parent.mkdir(exist_ok=True)
            (FOLDER / file).write_bytes(content)
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

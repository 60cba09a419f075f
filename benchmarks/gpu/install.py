"""The package as a wheel would hold it, in a folder: the sources, and the libraries of a build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def main(build: Path, site: Path) -> None:
    """Make ``site`` anew from python/fastmine and what ``build`` installs."""
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(
        Path(__file__).parents[2] / "python" / "fastmine", site / "fastmine",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )  # fmt: skip
    subprocess.run(["cmake", "--install", str(build), "--prefix", str(site)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Compare golden runs: with the kept digests, with another commit, or write new ones.

python -m tests.golden                   this tree against tests/golden/digests.json
python -m tests.golden --against main~3  this tree against that commit, on this machine
python -m tests.golden --write           keep what this tree gives (say in the commit why)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.golden.kept import KEPT, compare
from tests.golden.runs import digests_and_figures, probe


def main() -> int:
    """Print each difference; 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--against", metavar="REV", help="a commit to run beside this tree")
    parser.add_argument("--write", action="store_true", help="keep what this tree gives")
    parser.add_argument("--print", action="store_true", help="print the digests as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digests, figures = digests_and_figures(Path(folder))
    found = {"probe": probe(), "digests": digests, "figures": figures}
    if options.print:
        print(json.dumps(found))  # noqa: T201
        return 0
    if options.write:
        KEPT.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        return 0
    kept = _of_commit(options.against) if options.against else json.loads(KEPT.read_text())
    differences = compare(kept, found)
    print("\n".join(differences) or f"{len(digests)} digests are the same")  # noqa: T201
    return 1 if differences else 0


def _of_commit(revision: str) -> dict[str, object]:
    """What that commit's own golden runs give here."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", tree, revision], check=True)
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "tests.golden", "--print"],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree)},
                check=True,
                capture_output=True,
                text=True,
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True)
    kept: dict[str, object] = json.loads(ran.stdout)
    return kept


if __name__ == "__main__":
    raise SystemExit(main())

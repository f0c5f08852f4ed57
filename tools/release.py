"""Sets a new version everywhere and dates its changes; makes no commit and no push.

python tools/release.py 0.2.0     what `make release VERSION=0.2.0` runs
python tools/release.py --check   whether every place names the same version

The version stands in pyproject.toml; PLACES are the files that have to repeat it, and a test holds them together.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "pyproject.toml"
PLACES = {
    SOURCE: re.compile(r'(?m)^(version = ")([^"]+)(")$'),
    "scale_vqa_eval/__init__.py": re.compile(r'(?m)^(__version__ = ")([^"]+)(")$'),
    "CITATION.cff": re.compile(r"(?m)^(version: )(\S+)()$"),
}
"""File -> pattern whose second group is the version; each has to match exactly once."""
DATE = re.compile(r"(?m)^date-released: .*\n")
CHANGELOG = "CHANGELOG.md"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?")
_UNRELEASED = re.compile(r"(?m)^## \[Unreleased\]\n(.*?)(?=^## \[|\Z)", re.DOTALL)


def main() -> int:
    """Runs the command; exit 1 where the tree or the version does not allow it, 2 for wrong use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="x.y.z, or x.y.zrcN")
    parser.add_argument("--check", action="store_true", help="only compare the places")
    parser.add_argument("--date", help="of the release, YYYY-MM-DD  [default: today, or $SOURCE_DATE_EPOCH]")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check == bool(given.version):
        parser.error("give a version, or --check")
    problems = check(given.root) if given.check else release(given.root, given.version, given.date or today())
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def check(root: Path) -> list[str]:
    """Returns what disagrees about the version."""
    found, problems = versions(root)
    problems += [
        f"{place}: expected version {found[SOURCE]} of {SOURCE}, found {version}; fix: make release VERSION=..."
        for place, version in found.items()
        if version != found.get(SOURCE)
    ]
    if not problems:
        print(f"{found[SOURCE]} in {', '.join(found)}")
    return problems


def release(root: Path, version: str, date: str) -> list[str]:
    """Writes the version into every place and the date into the changelog; returns why not, having written nothing."""
    found, problems = versions(root)
    if not _VERSION.fullmatch(version):
        problems.append(f"expected a version x.y.z or x.y.zrcN, found {version!r}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        problems.append(f"expected a date YYYY-MM-DD, found {date!r}")
    if problems:
        return problems
    changes = (root / CHANGELOG).read_text(encoding="utf-8")
    released = re.findall(r"(?m)^## \[(\d[^\]]*)\]", changes)
    now = found[SOURCE]
    if order(version) < order(now) or version in released or any(order(one) >= order(version) for one in released):
        problems.append(f"expected a version above {max([now, *released], key=order)}, found {version}")
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if dirty.stdout:
        listed = ", ".join(line[3:] for line in dirty.stdout.splitlines()[:5])
        problems.append(f"expected a clean tree, found changes in {listed}; fix: commit them first")
    tags = subprocess.run(
        ["git", "tag", "--list", f"v{version}"], cwd=root, capture_output=True, text=True, check=True
    )
    if tags.stdout.strip():
        problems.append(f"expected no tag v{version}, found one; fix: take the next version")
    unreleased = _UNRELEASED.search(changes)
    if unreleased is None or not unreleased[1].strip():
        problems.append(f"{CHANGELOG}: expected changes under [Unreleased], found none; fix: say what changed")
    if problems or unreleased is None:
        return problems
    for place, pattern in PLACES.items():
        rewrite(root / place, pattern, version)
    citation = DATE.sub("", (root / "CITATION.cff").read_text(encoding="utf-8"))
    citation = citation.replace(f"version: {version}\n", f"version: {version}\ndate-released: {date}\n", 1)
    (root / "CITATION.cff").write_text(citation, encoding="utf-8", newline="\n")
    dated = f"## [Unreleased]\n\n## [{version}] - {date}\n{unreleased[1]}"
    changes = changes[: unreleased.start()] + dated + changes[unreleased.end() :]
    (root / CHANGELOG).write_text(changes, encoding="utf-8", newline="\n")
    print(f"{now} -> {version} in {', '.join([*PLACES, CHANGELOG])}; nothing was committed or pushed. Next:")
    print(
        f"  git diff\n  git commit -am 'Release {version}'\n  git tag -a v{version} -m {version}\n  make release-check"
    )
    return []


def versions(root: Path) -> tuple[dict[str, str], list[str]]:
    """Returns place -> version, and the places that do not name it exactly once."""
    found, problems = {}, []
    for place, pattern in PLACES.items():
        matches = pattern.findall((root / place).read_text(encoding="utf-8"))
        if len(matches) == 1:
            found[place] = matches[0][1]
        else:
            problems.append(f"{place}: expected one version, found {len(matches)}")
    return found, problems


def order(version: str) -> tuple[float, ...]:
    """Returns a sort key: a release candidate comes before its release."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (0.0,)
    *numbers, candidate = match.groups()
    return (*map(float, numbers), float(candidate) if candidate else float("inf"))


def rewrite(path: Path, pattern: re.Pattern[str], value: str) -> None:
    """Replaces the one match's second group."""
    text = path.read_text(encoding="utf-8")
    path.write_text(pattern.sub(rf"\g<1>{value}\g<3>", text, count=1), encoding="utf-8", newline="\n")


def today() -> str:
    """Returns the date in UTC; $SOURCE_DATE_EPOCH goes first, so that a release can be made again alike."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.UTC)
    return (datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else now).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Print the number of lines in tracked text files per folder, for one or more commits.

dev/lines.py v0.1 HEAD
"""

import argparse
import subprocess
from collections import Counter

DEPTHS = {"projects/FAMix/famix/": 4, "projects/FAMix/": 3, "tests/": 2, "benchmarks/": 2}
"""Start of a path -> number of path components in the row name. All other files are counted by their first folder."""


def folder_of(path: str) -> str:
    """Return the name of the table row for a path."""
    depth = next((depth for start, depth in DEPTHS.items() if path.startswith(start)), 1)
    return "/".join(path.split("/")[:-1][:depth]) or "(root)"


def count_lines(commit: str) -> Counter[str]:
    """Count the lines in all text files of a commit by folder."""
    command = ["git", "grep", "--text", "-I", "--count", "--full-name", "-e", "", commit, "--", ":/"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines: Counter[str] = Counter()
    for row in output.splitlines():
        path, count = row.removeprefix(f"{commit}:").rsplit(":", 1)
        lines[folder_of(path)] += int(count)
    return lines


def print_table(commits: list[str]) -> None:
    """Print one row per folder, one column per commit, and the change between the first and the last."""
    counts = [count_lines(commit) for commit in commits]
    folders = sorted(set().union(*counts))
    groups = {
        "famix": "projects/FAMix/famix", "famix_cli": "projects/FAMix/famix_cli",
        "famix_minitown": "projects/FAMix/famix_minitown", "tests": "tests",
        "benchmarks": "benchmarks", "projects": "projects", "all": "",
    }  # fmt: skip
    print("| folder | " + " | ".join(commits) + " | change |")
    print("|:--|" + "--:|" * (len(commits) + 1))
    for folder in folders:
        print_row(folder, [count[folder] for count in counts])
    for name, start in groups.items():
        inside = [f for f in folders if f == start or f.startswith(f"{start}/") or not start]
        print_row(f"**{name}**", [sum(count[f] for f in inside) for count in counts])


def print_row(name: str, values: list[int]) -> None:
    """Print the row for a folder."""
    change = f"{values[-1] / values[0] - 1:+.0%}" if values[0] else "new"
    print(f"| {name} | " + " | ".join(str(value) for value in values) + f" | {change} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", default=["HEAD"], help="commits, branches or tags (default: HEAD)")
    print_table(parser.parse_args().commits)

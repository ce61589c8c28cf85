#!/usr/bin/env python
"""Update the badges in README.md and the issue templates to REPOSITORY_URL in setup.cfg; remove them if it is empty.

    dev/repository_links.py

The links of the package and of the tutorial's notebook are made by setup.py and `make notebook`.
"""

import configparser
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BADGE = "[![check]("
BUG = """name: Bug report
description: FAMix does something other than its documents say.
labels: [bug]
body:
  - type: markdown
    attributes:
      value: "[Troubleshooting]({url}/blob/main/docs/TROUBLESHOOTING.md) explains frequent errors."
  - type: textarea
    attributes:
      label: What did you run?
      description: The command, the config, and the keys that you changed.
      render: shell
    validations:
      required: true
  - type: textarea
    attributes:
      label: What happened, and what did you expect?
      description: The last lines of the output or of log.txt.
    validations:
      required: true
  - type: textarea
    attributes:
      label: Environment
      description: The table at the beginning of log.txt, or the output of `python -m detectron2.utils.collect_env`.
      render: text
    validations:
      required: true
"""
CHOICES = """blank_issues_enabled: true
contact_links:
  - name: Troubleshooting
    url: {url}/blob/main/docs/TROUBLESHOOTING.md
    about: Frequent errors and their remedies.
  - name: Your own data
    url: {url}/blob/main/docs/START.md
    about: From your images to a network.
"""
TEMPLATES = {"bug.yml": BUG, "config.yml": CHOICES}


def update_links(root: Path) -> None:
    """Update the files of a repository to the REPOSITORY_URL in its setup.cfg."""
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg", encoding="utf-8")
    url = settings["famix"]["REPOSITORY_URL"].rstrip("/")
    readme, folder = root / "README.md", root / ".github/ISSUE_TEMPLATE"
    title, *lines = [line for line in readme.read_text().splitlines() if not line.startswith(BADGE)]
    if url:
        action = f"{url}/actions/workflows/check.yml"
        lines = ["", f"{BADGE}{action}/badge.svg)]({action})", *lines]
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in TEMPLATES.items():
            (folder / name).write_text(text.replace("{url}", url))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        while lines[:2] == ["", ""]:
            del lines[0]
    readme.write_text("\n".join([title, *lines]) + "\n")


if __name__ == "__main__":
    update_links(ROOT)

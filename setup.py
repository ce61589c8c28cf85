"""Links of the package to its repository, from REPOSITORY_URL in setup.cfg, which has all other metadata."""

import configparser
from pathlib import Path

from setuptools import setup

parser = configparser.ConfigParser()
parser.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
url = parser["famix"]["REPOSITORY_URL"].rstrip("/")
links = {"Source": url, "Issues": f"{url}/issues", "Changelog": f"{url}/blob/main/CHANGELOG.md"} if url else {}
setup(project_urls=links)

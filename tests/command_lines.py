"""Finds every command line and every Python example of the documents."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from run_factory import ROOT

__all__ = ["DOCUMENTS", "Block", "Command", "find_blocks", "find_commands"]

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "projects/FAMix/README.md",
    ROOT / "projects/FAMix/MODEL_ZOO.md",
    ROOT / "projects/FAMix/famix_minitown/weights/README.md",
    ROOT / "datasets/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TRAIN = "python projects/FAMix/train_net.py --config-file projects/FAMix/configs/GTA5/famix_RN50.yaml"

_START = re.compile(
    r"""(?:[A-Z0-9_]+=\S*\s+)*(?:python|\.venv/bin/python|make|export|sbatch|srun|torchrun|bash|pip|git)\s
    |tools/\S+\.py\s | \.\.\.\s | [A-Z][A-Z0-9_]*=\S+\s*$ | [A-Z][A-Z_]*(?:\.[A-Z][A-Z_]*)+\s""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """An indented or fenced part of a document.

    Attributes:
        document: path from the root of the repository.
        number: of its first line.
        language: that the fence names, or "".
        lines: without the indentation.
    """

    document: str
    number: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines) + "\n"

    @property
    def is_commands(self) -> bool:
        """Whether it begins with a command, comments aside."""
        first = next((line for line in self.lines if line and not line.startswith("#")), "")
        return self.language in ("", "sh", "bash", "console") and bool(_START.match(f"{first} "))


@dataclass(frozen=True)
class Command:
    """A command line for a shell.

    Attributes:
        document: path from the root of the repository.
        number: of its first line.
        text: with the command in front that `...` stands for, and the assignments above it.
    """

    document: str
    number: int
    text: str

    def __str__(self) -> str:
        words = re.sub(r"\s+#.*", "", self.text.splitlines()[-1])
        return f"{self.document}:{self.number}: {words[:30]}...{words[-50:]}" if len(words) > 80 else words


def find_blocks() -> list[Block]:
    """All blocks of all documents, in their order."""
    return [block for document in DOCUMENTS for block in _blocks(document)]


def find_commands() -> list[Command]:
    """All commands of all documents, in their order.

    Raises:
        ValueError: a block of commands has a line that is none.
    """
    commands = []
    before, assignments = {}, {}  # document -> its first training command, and its assignments of variables
    for block in find_blocks():
        if not block.is_commands:
            continue
        for number, line in _joined(block):
            if not _START.match(f"{line} "):
                raise ValueError(f"{block.document}:{number} is among commands, but is none that is known: {line}")
            if re.match(r"[A-Z0-9_]+=\S+$", line):
                assignments[block.document] = f"{assignments.get(block.document, '')}{line}\n"
            if re.match(r"\.\.\. |[A-Z][A-Z_]*\.", line):  # more settings
                line = f"{before.get(block.document, TRAIN)} {line.removeprefix('... ')}"
            elif "train_net.py" in line:
                before.setdefault(block.document, re.sub(r"\s+# .*", "", line))
            above = assignments.get(block.document, "") if "$" in line else ""
            commands.append(Command(block.document, number, above + line))
    return commands


def _joined(block: Block) -> Iterator[tuple[int, str]]:
    """Lines with those that continue them; comments, empty ones and what stands indented, as output, are left out."""
    number, parts = 0, []
    for place, line in enumerate(block.lines):
        if line.startswith(" ") and not parts:
            continue
        number = number if parts else block.number + place
        parts.append(line.strip().removesuffix("\\"))
        if line.endswith("\\"):
            continue
        text, parts = " ".join(part.strip() for part in parts), []
        if text and not text.startswith("#"):
            yield number, text


def _blocks(document: Path) -> Iterator[Block]:
    name = str(document.relative_to(ROOT))
    language, start, lines = None, 0, []  # language: None outside of fences
    blank = True
    for number, line in enumerate([*document.read_text().splitlines(), "end"], start=1):
        fence = re.match(r"```(\w*)\s*$", line)
        if fence and language is not None:
            yield Block(name, start, language, tuple(lines))
            language, lines = None, []
        elif fence:
            language, start, lines = fence[1], number + 1, []
        elif language is not None:
            lines.append(line)
        elif line.startswith("    ") and (lines or blank):
            start = start if lines else number
            lines.append(line[4:])
        elif not line.strip() and lines:
            lines.append("")
        elif lines:
            yield Block(name, start, "", tuple(lines))
            lines = []
        blank = not line.strip()

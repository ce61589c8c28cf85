"""Finds every command line and every Python example of the documents."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from run_factory import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    *(ROOT / "projects/FAMix" / name for name in ("README.md", "MODEL_ZOO.md", "famix_minitown/weights/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TRAIN = "python projects/FAMix/train_net.py --config-file projects/FAMix/configs/GTA5/famix_RN50.yaml"

_START = re.compile(
    r"""(?:[A-Z0-9_]+=\S*\s+)*(?:python|\.venv/bin/python|make|export|sbatch|srun|torchrun|bash|pip|git|(?:\.venv/bin/)?famix-\w+)\s
    |tools/\S+\.py\s | \.\.\.\s | [A-Z][A-Z0-9_]*=\S+\s*$ | [A-Z][A-Z_]*(?:\.[A-Z][A-Z_]*)+\s""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """An indented or fenced part of a document."""

    document: str  # path from the root of the repository
    number: int  # of the first line
    language: str  # named by the fence, or ""
    lines: tuple[str, ...]  # without the indentation

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def is_commands(self) -> bool:
        """Whether the block begins with a command, comments aside."""
        first = next((line for line in self.lines if line and not line.startswith("#")), "")
        return self.language in ("", "sh", "bash", "console") and bool(_START.match(f"{first} "))


@dataclass(frozen=True)
class Command:
    """A command line for a shell, with `...` replaced by its command, below the assignments above it."""

    document: str
    number: int
    text: str

    def __str__(self) -> str:
        words = re.sub(r"\s+#.*", "", self.text.splitlines()[-1])
        return f"{self.document}:{self.number}: {words[:30]}...{words[-50:]}" if len(words) > 80 else words


def find_blocks() -> list[Block]:
    """Return all blocks of all documents, in their order."""
    return [block for document in DOCUMENTS for block in _blocks(document)]


def find_commands() -> list[Command]:
    """Return all commands of all documents, in their order.

    Raises:
        ValueError: a line in a block of commands is not a command.
    """
    commands = []
    before, assignments = {}, {}  # document -> its first training command, and its assignments of variables
    for block in find_blocks():
        for number, line in _joined(block) if block.is_commands else ():
            if not _START.match(f"{line} "):
                raise ValueError(
                    f"{block.document}:{number} is in a block of commands, but not a known command: {line}"
                )
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
    """Yield lines joined with their continuations, without comments, empty lines and indented output."""
    number, parts = 0, []
    for place, line in enumerate(block.lines):
        if line.startswith(" ") and not parts:
            continue
        number = number if parts else block.number + place
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.endswith("\\"):
            text, parts = " ".join(parts), []
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

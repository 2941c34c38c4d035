"""Which lines were reached, by file and in all, and which were not, by function and with the reason.

    coverage.py FOLDER REASONS PERCENT

Reads FOLDER/lines.info (lcov's format, as llvm-cov writes it) and writes FOLDER/files.txt, which it also
prints, and FOLDER/uncovered.txt. A line of REASONS is `FILE:FUNCTION reason`, the first word with * for
anything; of several that fit, the first counts. A reason that fits nothing that is uncovered is
named: it is out of date, unless it begins with "by chance". The exit status is 1 below PERCENT, and when
a line has no reason.
"""

from __future__ import annotations

import bisect
import fnmatch
import sys
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("core/", "blk/", "net/", "apps/")
TEST_IMAGES = ("apps/selftest/", "apps/deaths/")
NO_REASON = "no reason is known"
BY_CHANCE = "by chance"  # reached in some runs: what is random in them decides


@dataclass
class File:
    lines: dict[int, int] = field(default_factory=dict)  # how often each was reached
    functions: dict[int, str] = field(default_factory=dict)  # by their first line

    def reached(self) -> int:
        return sum(count > 0 for count in self.lines.values())

    def function_at(self, line: int) -> str:
        starts = sorted(self.functions)
        at = bisect.bisect_right(starts, line)
        return self.functions[starts[at - 1]] if at else ""

    def uncovered(self) -> list[tuple[str, int, int, int]]:
        """Runs of lines: function, first, last, how many of them are code."""
        runs: list[tuple[str, int, int, int]] = []
        goes_on = False
        for line in sorted(self.lines):
            if self.lines[line] > 0:
                goes_on = False
                continue
            name = self.function_at(line)
            if goes_on and runs[-1][0] == name:
                runs[-1] = (name, runs[-1][1], line, runs[-1][3] + 1)
            else:
                runs.append((name, line, line, 1))
            goes_on = True
        return runs


def read_lines(path: Path) -> dict[str, File]:
    files: dict[str, File] = {}
    here = str(Path.cwd()) + "/"
    current = File()
    for line in path.read_text().splitlines():
        word, _, rest = line.partition(":")
        if word == "SF":
            current = files.setdefault(rest.removeprefix(here).removeprefix("./"), File())
        elif word == "FN":
            number, name = rest.split(",", 1)
            current.functions[int(number)] = name.rpartition(":")[2]
        elif word == "DA":
            number, count = rest.split(",")[:2]
            at = int(number)
            current.lines[at] = max(current.lines.get(at, 0), int(count))
    return {
        name: file
        for name, file in sorted(files.items())
        if name.startswith(FOLDERS) and not name.startswith(TEST_IMAGES) and file.lines
    }


def read_reasons(path: Path) -> list[tuple[str, str]]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(words[0], words[1]) for words in pairs]


def table(files: dict[str, File]) -> str:
    groups: dict[str, list[File]] = {}
    rows = []
    for name, file in files.items():
        groups.setdefault(name.split("/")[0] + "/", []).append(file)
        rows.append(row(name, [file]))
    rows.append("")
    rows += [row(name, group) for name, group in sorted(groups.items())]
    rows.append(row("all", list(files.values())))
    return "\n".join(rows) + "\n"


def row(name: str, files: list[File]) -> str:
    total = sum(len(file.lines) for file in files)
    missed = total - sum(file.reached() for file in files)
    return f"{name:34} {total:6} lines, {missed:5} not reached  {percent(total, missed):6.2f} %"


def percent(total: int, missed: int) -> float:
    return 100.0 * (total - missed) / total


def explain(files: dict[str, File], reasons: list[tuple[str, str]]) -> tuple[str, dict[str, int]]:
    """What was not reached; and how many lines each reason stands for."""
    used: dict[str, int] = {pattern: 0 for pattern, _ in reasons}
    used[NO_REASON] = 0
    out = []
    for name, file in files.items():
        for function, first, last, count in file.uncovered():
            place = f"{name}:{function}"
            pattern, reason = next(
                (pair for pair in reasons if fnmatch.fnmatchcase(place, pair[0])), (NO_REASON, NO_REASON)
            )
            used[pattern] += count
            lines = f"{first}-{last}" if last > first else f"{first}"
            out.append(f"{place} {lines}: {reason}")
    return "\n".join(out) + "\n", used


def main() -> int:
    folder, reasons_path, least = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    files = read_lines(folder / "lines.info")
    shown = table(files)
    reasons = read_reasons(reasons_path)
    text, used = explain(files, reasons)
    (folder / "files.txt").write_text(shown)
    (folder / "uncovered.txt").write_text(text)
    print(shown, end="")
    missed = sum(used.values())
    print(f"of {missed} lines not reached, {used[NO_REASON]} without a reason: {folder}/uncovered.txt")
    for pattern, reason in reasons:
        if used[pattern] == 0 and not reason.startswith(BY_CHANCE):
            print(f"{reasons_path}: {pattern} fits nothing that is not reached")
    print("".join(line + "\n" for line in text.splitlines() if line.endswith(NO_REASON)), end="")
    total = sum(len(file.lines) for file in files.values())
    if percent(total, missed) < least:
        print(f"below {least:g} %")
    return 1 if percent(total, missed) < least or used[NO_REASON] > 0 else 0


if __name__ == "__main__":
    sys.exit(main())

"""The regression guard without a clock: the instructions of a small model's forwards, counted.

    make instruction-counts                                    # compile, count, compare
    make instruction-counts UPDATE=1                           # record what was counted
    python tests/instruction_counts.py PROGRAM [--update]      # the same, without compiling

Valgrind's callgrind runs what csrc/tests/instruction_counts.cpp makes, a process for each case, and
counts the instructions of one forward by the source file that they come from. The counts must not
be above those in instruction_counts.json, a case's sum and each of its files', by more than the
tolerance: a product is most of a forward, and what becomes of the rest would be lost in it.

valgrind knows AVX2 and nothing newer, so the kernels are those of AVX2, int8 with its one
instruction of AVX-VNNI emulated, and the portable ones. All but a micro-kernel and a vector type is
the same code for every instruction set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cuda_gate import output_of, short

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
RECORD = Path(__file__).with_suffix(".json")

# One program gives the same counts to the instruction, whatever the addresses, the environment and
# the folder (0 of 47 million differ): the compiler is pinned and the libraries are linked in. So
# the tolerance is for changes of the code only: what rises by less is not worth a look.
TOLERANCE = 0.02
# A file with little to do may rise by this part of the whole, whatever that is of its own.
LEAST = 0.001

COUNTED = "counted_forward"
LIBRARIES = "libraries"

# Instructions by source file and function.
Profile = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Change:
    """A count that is not as recorded: of a source file, or of the whole case."""

    of: str
    recorded: int
    counted: int

    def __str__(self) -> str:
        rise = f"{self.counted / self.recorded - 1:+.1%}" if self.recorded else "new"
        return f"{self.of} {self.recorded:,} -> {self.counted:,} ({rise})"


# --- counting -------------------------------------------------------------------------------------


def count(program: Path, case: str) -> Profile:
    """Run a case in callgrind. Raises RuntimeError with its words where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        output_of(
            *("valgrind", "--quiet", "--tool=callgrind", f"--toggle-collect={COUNTED}"),
            *("--compress-strings=no", "--compress-pos=no", f"--callgrind-out-file={profile}"),
            *(program, case),
        )
        return read_profile(profile.read_text())


def read_profile(text: str) -> Profile:
    """From callgrind's file, not compressed. Raises RuntimeError where its sum is another."""
    found: Profile = Counter()
    file = function = ""
    total, inclusive = 0, False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in ("fl", "fi", "fe"):
            file = source_of(value)
        elif key == "fn":
            function = short(value)
        elif key == "calls":
            inclusive = True  # the next line is of the callee, who is counted where it stands
        elif line[:1].isdigit():
            if not inclusive:
                found[file, function] += sum(map(int, line.split()[1:]))
            inclusive = False
        elif line.startswith("totals: "):
            total = int(line.split()[1])
    if total != found.total() or not total:
        raise RuntimeError(f"callgrind's file has {found.total()} instructions, not its {total}")
    return found


def source_of(path: str) -> str:
    """The name of a file of this project; LIBRARIES for any other."""
    file = Path(os.path.normpath(path))
    return file.name if file.is_relative_to(SOURCES) else LIBRARIES


def by_source(profile: Profile) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for (source, _), instructions in profile.items():
        sums[source] += instructions
    return dict(sorted(sums.items()))


# --- comparing ------------------------------------------------------------------------------------


def changes(recorded: Mapping[str, int], counted: Mapping[str, int]) -> list[Change]:
    """What is further off than the tolerance, the sum first."""
    before, after = sum(recorded.values()), sum(counted.values())
    every = [Change("in all", before, after)]
    every += [
        Change(source, recorded.get(source, 0), counted.get(source, 0))
        for source in sorted({*recorded, *counted})
    ]
    return [
        change
        for change in every
        if abs(change.counted - change.recorded) > max(TOLERANCE * change.recorded, LEAST * before)
    ]


def busiest(profile: Profile, of: str) -> Iterator[str]:
    """A line for each of the functions that most of a count is in."""
    functions: Counter[str] = Counter()
    for (source, function), instructions in profile.items():
        if of in (source, "in all"):
            functions[function] += instructions
    for function, instructions in functions.most_common(3):
        yield f"{instructions:16,}  {function}"


def lines(case: str, recorded: Mapping[str, int], profile: Profile) -> Iterator[str]:
    """What is to be said of a case; what begins with FAIL is why the guard fails."""
    counted = by_source(profile)
    yield f"{case:32}{sum(counted.values()):14,} instructions"
    for change in changes(recorded, counted):
        if change.counted > change.recorded:
            yield f"FAIL {case}: {change}, most of it in"
            yield from busiest(profile, change.of)
        else:
            yield f"less {case}: {change}; make instruction-counts UPDATE=1 records it"


# --- the command ----------------------------------------------------------------------------------


def compiler() -> str:
    return f"ziglang {metadata.version('ziglang')}"


def lacking() -> str | None:
    """What it takes and is not here."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"this is {machine}, not Linux x86_64"
    if shutil.which("valgrind") is None:
        return "there is no valgrind (apt install valgrind)"
    return None


def record(counted: Mapping[str, Profile]) -> None:
    cases = {case: by_source(profile) for case, profile in counted.items()}
    text = json.dumps({"compiler": compiler(), "instructions": cases}, indent=2)
    RECORD.write_text(text + "\n")
    print(f"instruction counts: {len(cases)} cases recorded")


def compare(counted: Mapping[str, Profile]) -> int:
    """Print what differs from the record; how many counts are too high."""
    recorded = json.loads(RECORD.read_text())
    if recorded["compiler"] != compiler():
        print(f"FAIL the record is of {recorded['compiler']}, this is {compiler()}: UPDATE=1")
        return 1
    failed = 0
    for case in sorted({*recorded["instructions"], *counted}):
        if case not in counted or case not in recorded["instructions"]:
            told = [f"FAIL {case}: {'recorded' if case not in counted else 'counted'} only"]
        else:
            told = list(lines(case, recorded["instructions"][case], counted[case]))
        failed += sum(line.startswith("FAIL") for line in told)
        print(*told, sep="\n")
    print(f"instruction counts: {len(counted)} cases, {failed} counts too high")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="fastdistil_instruction_counts")
    parser.add_argument("--update", action="store_true", help="record the counts")
    wanted = parser.parse_args()
    if lacks := lacking():
        print(f"instruction counts: compiled, but NOT COUNTED: {lacks}. CI counts them.")
        return 0
    cases = output_of(wanted.program).splitlines()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        profiles = pool.map(lambda case: count(wanted.program, case), cases)
        counted = dict(zip(cases, profiles, strict=True))
    if wanted.update:
        record(counted)
        return 0
    return 1 if compare(counted) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a compiled program moves, read from its HLO text.

What stands in a loop counts as often as the loop runs; XLA's own cost analysis counts
it once. Reference: openxla.org/xla/operation_semantics.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
SLICES = "slices"
BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
         "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
         "f64": 8}  # fmt: skip
# They name memory that is there already, or wait for what another one began.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while",
         "call", "conditional", "async-start", "async-done", "copy-done", "after-all",
         "optimization-barrier", "partition-id", "iota", "send", "recv"}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\(([^)]*)\)")
# An array with its layout; S(n) marks memory on the chip other than the main one.
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_INSIDE = re.compile(r"(?:to_apply|calls|called_computations|branch_computations)="
                     r"\{?((?:%[\w.\-]+(?:, )?)+)")  # fmt: skip
_LOOP = re.compile(r"condition=%([\w.\-]+), body=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# 'axis'=size, perhaps a numbering of the devices, and the axes inside a group.
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}"
)
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHANNEL = re.compile(r"channel_id=\d+")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


class Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


@dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: one of COLLECTIVES.
    axes: the mesh axes that it crosses, "data", "data+fsdp", ..., or SLICES.
    devices: that take part in one group; slices, where it goes between them.
    bytes: of one device's result, each time.
    times: in a run of the program.
    """

    kind: str
    axes: str
    devices: int
    bytes: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends, all times, by the best algorithm on a ring."""
        of_result = {
            "all-reduce": 2 * (self.devices - 1) / self.devices,
            "reduce-scatter": self.devices - 1,
            "collective-permute": 1,
        }.get(self.kind, (self.devices - 1) / self.devices)
        return of_result * self.bytes * self.times


class Program:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: a compiler that gives none.
    """

    def __init__(self, text: str | None):
        if not text:
            raise ValueError("the compiler gives no text of its program")
        self.computations = dict(_computations(text))
        self._times = self._count_runs(fused=True)
        self._top = self._count_runs(fused=False)

    def collectives(self, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
        """One entry a distinct (kind, axes, bytes), those of most traffic first.

        Args:
          mesh: axis to size, in the order in which devices are numbered.
          slices: over which the first axis is split. What goes between them is sent by
            the hosts, and stands in the program as a transfer to them.
        """
        found: dict[tuple[str, str, int, int], int] = {}
        seen: set[str] = set()
        for name, times in self._times.items():
            for of in self.computations[name]:
                kind = of.op.removesuffix("-start")
                if kind in COLLECTIVES:
                    devices, axes = _crossed(_groups(of.line, mesh), mesh)
                    size = _result_bytes(of)
                elif of.op == "send" and (between := _BETWEEN.search(of.line)):
                    kind = between[1].lower().replace("_", "-")
                    kind = kind if kind in COLLECTIVES else "collective-permute"
                    devices, axes = slices, SLICES
                    size = int(_arrays(of.shape)[0])
                else:
                    continue
                # One that runs beside several fusions stands in each of them.
                channel = _CHANNEL.search(of.line)
                if axes and (channel is None or channel[0] not in seen):
                    key = kind, axes, devices, size
                    found[key] = found.get(key, 0) + times
                    seen.add(channel[0] if channel else "")
        entries = [Collective(*key, times=count) for key, count in found.items()]
        return sorted(entries, key=lambda of: -of.sent)

    def memory_bytes(self) -> float:
        """Bytes that go to and from the main memory of a device.

        Every instruction reads its operands and writes its result there, but for what
        the compiler keeps nearer; of an array that is sliced in place, the slice.
        """
        total = 0.0
        for name, times in self._top.items():
            table = {of.name: of for of in self.computations[name]}
            total += times * sum(self._moved(table, of) for of in table.values())
        return total

    def cycles(self) -> int:
        """Of a TPU: what its compiler expects, one instruction after another."""
        return sum(
            times * sum(int(m[1]) for of in self.computations[name]
                        if (m := _CYCLES.search(of.line)))
            for name, times in self._top.items()
        )  # fmt: skip

    def _moved(self, table: dict[str, Instruction], of: Instruction) -> float:
        if of.op in _FREE or of.op.endswith("-done"):
            return 0
        if of.op == "copy-start":  # the result names source, target and a flag
            return _bytes(of.shape)
        operands = [table[name] for name in of.operands if name in table]
        if of.op == "fusion" and (inside := _INSIDE.search(of.line)):
            body = self.computations.get(inside[1].strip(" ,").lstrip("%"))
            if body:
                return _of_fusion(body, [x.shape for x in operands], of.shape)
        if of.op == "dynamic-slice" or of.op == "gather":
            return 2 * _bytes(of.shape)
        if of.op == "dynamic-update-slice":
            return 2 * _bytes(operands[1].shape)
        return _bytes(of.shape) + sum(_bytes(x.shape) for x in operands)

    def _count_runs(self, fused: bool) -> dict[str, int]:
        """How often each computation runs, from the entry on.

        Args:
          fused: whether to go into fusions, too.
        """
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            counts[name] = counts.get(name, 0) + times
            for of in self.computations.get(name, ()):
                if of.op == "while" and (loop := _LOOP.search(of.line)):
                    visit(loop[2], times * self._trips(of, loop[1]))
                elif fused or of.op in ("call", "conditional", "async-start"):
                    for inside in _INSIDE.findall(of.line):
                        for other in re.findall(r"%([\w.\-]+)", inside):
                            visit(other, times)

        visit("ENTRY", 1)
        return {name: n for name, n in counts.items() if name in self.computations}

    def _trips(self, of: Instruction, condition: str) -> int:
        """Of a loop: as XLA notes it, or the bound that its condition compares with."""
        if noted := _TRIPS.search(of.line):
            return int(noted[1])
        lines = [x.line for x in self.computations.get(condition, ())]
        return max((int(m[1]) for m in map(_BOUND.search, lines) if m), default=1)


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    name = ""
    body: list[Instruction] = []
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            name, body = "ENTRY" if opened[1] else opened[2], []
        elif line.startswith("}"):
            yield name, body
        elif made := _INSTRUCTION.match(line):
            operands = tuple(re.findall(r"%([\w.\-]+)", made[5]))
            body.append(
                Instruction(made[2], made[3], made[4], operands, line, bool(made[1]))
            )


def _arrays(shape: str, near: bool = True) -> list[float]:
    """Bytes of each array in a shape; `near`: also what is kept near the cores."""
    return [
        BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims, layout in _ARRAY.findall(shape)
        if dtype in BYTES and (near or not re.search(r"S\([1-9]", layout))
    ]


def _bytes(shape: str) -> float:
    return sum(_arrays(shape, near=False))


def _result_bytes(of: Instruction) -> int:
    """Of a collective; one that only starts names its operands as well."""
    sizes = _arrays(of.shape)
    if of.op == "collective-permute-start":
        sizes = sizes[:1]  # operand, result, two counters
    elif of.op == "all-gather-start":
        sizes = sizes[len(sizes) // 2 :]
    return int(sum(sizes))


def _of_fusion(body: list[Instruction], shapes: list[str], result: str) -> float:
    """Operands and result of a fusion; of what it slices, the slice."""
    table = {of.name: of for of in body}
    users: dict[str, list[Instruction]] = {}
    for of in body:
        for operand in of.operands:
            users.setdefault(operand, []).append(of)

    @functools.cache
    def read(name: str) -> float | None:
        """Bytes of an array that are touched; None for all."""
        touched = 0.0
        for user in users.get(name, ()):
            if user.op == "bitcast":
                part = read(user.name)
            elif user.operands[0] != name:
                part = None
            elif user.op in ("dynamic-slice", "gather"):
                part = sum(_arrays(user.shape))
            elif user.op == "dynamic-update-slice":
                part = 0.0  # written in place
            else:
                part = None
            if part is None:
                return None
            touched += part
        return touched

    def written(of: Instruction, shape: str) -> float:
        while of.op == "bitcast" and of.operands and of.operands[0] in table:
            of = table[of.operands[0]]
        if of.op == "dynamic-update-slice" and of.operands[1] in table:
            return min(sum(_arrays(table[of.operands[1]].shape)), _bytes(shape))
        return _bytes(shape)

    total = 0.0
    for of in body:
        if of.op == "parameter":
            number = int(re.search(r"parameter\((\d+)\)", of.line)[1])  # type: ignore
            whole = _bytes(shapes[number]) if number < len(shapes) else 0.0
            part = read(of.name)
            total += whole if part is None else min(part, whole)
        elif of.is_root and of.op == "tuple":
            parts = [table[name] for name in of.operands]
            total += sum(written(x, x.shape) for x in parts)
        elif of.is_root:
            total += written(of, result)
    return total


def _groups(line: str, mesh: Mapping[str, int]) -> np.ndarray:
    """int [groups, members]; of a permutation one row a pair."""
    devices = math.prod(mesh.values())
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        numbers = [int(n) for n in re.findall(r"\d+", pairs[1])]
        return np.array(numbers).reshape(-1, 2)
    if named := _NAMED.search(line):
        sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", named[1])}
        inside = re.findall(r"'(\w+)'", named[4])
        order = [n for n in sizes if n not in inside] + inside
        places = np.arange(devices)
        if named[2]:
            places = places.reshape([int(n) for n in named[2].split(",")])
        if named[3]:
            places = places.transpose([int(n) for n in named[3].split(",")])
        places = places.reshape(tuple(sizes.values()))
        moved = places.transpose([list(sizes).index(n) for n in order])
        return moved.reshape(-1, math.prod(sizes[n] for n in inside))
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    )
    if iota:
        shape, source = ([int(n) for n in of.split(",")] for of in (iota[1], iota[2]))
        places = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            places = places.transpose([int(n) for n in iota[3].split(",")])
        return places.reshape(shape)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    return np.arange(devices)[None]


def _crossed(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[int, str]:
    """Members of a group, and the axes along which they differ ("" where alone)."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
    differ = (places != places[:, :1]).any(axis=(0, 1))
    axes = "+".join(name for name, of in zip(mesh, differ, strict=True) if of)
    return groups.shape[1], axes

"""Phones with times: HTS full-context labels, Praat TextGrids and TIMIT .PHN files, all into seconds."""

import re
from pathlib import Path
from typing import NamedTuple

from quintet.common.errors import UserError

# ARPAbet without stress, Festival's schwa, a pause and spoken noise
_ARPABET = (
    "aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p pau r s sh spn t th uh uw v w y z zh"
)
ARPABET = _ARPABET.split()
BEYOND = "x"  # HTS for "before the first or after the last phone"
HTS_CONTEXT = re.compile(r"^(?P<ll>[^\^]+)\^(?P<l>[^-]+)-(?P<c>[^+]+)\+(?P<r>[^=]+)=(?P<rr>[^@]+)@")


class Phone(NamedTuple):
    start: float  # seconds
    stop: float
    context: tuple[str, ...]  # LL, L, C, R, RR

    @property
    def name(self) -> str:
        return self.context[2]


def read_hts(path: Path, offset: float = 0.0) -> list[Phone]:
    """`start end LL^L-C+R=RR@...`, times in units of 100 ns; `offset` seconds are subtracted from them.

    Raises UserError naming file and row.
    """
    phones = []
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split(maxsplit=2)
        context = HTS_CONTEXT.match(fields[2]) if len(fields) == 3 else None
        if context is None or not (fields[0].isdigit() and fields[1].isdigit()):
            raise UserError(
                f"{path} row {row}: expected `start end LL^L-C+R=RR@...` as HTS writes it, got {line[:60]!r}"
            )
        names = tuple(normalize(context[key]) for key in ("ll", "l", "c", "r", "rr"))
        phones.append(Phone(int(fields[0]) * 1e-7 - offset, int(fields[1]) * 1e-7 - offset, names))
    return _in_order(phones, path)


def read_textgrid(path: Path, tier: str = "phones") -> list[Phone]:
    """The intervals of one tier of a long-format TextGrid; stress digits go, sp, sil and "" become pau."""
    text = path.read_text(encoding="utf-8")
    tiers = re.split(r"item \[\d+\]:", text)[1:]
    names = [match[1] if (match := re.search(r'name = "([^"]*)"', part)) else "" for part in tiers]
    if tier not in names:
        raise UserError(
            f"{path} has no tier {tier!r}, only {', '.join(names) or 'none in the long format'}: set tier=..."
        )
    number = r"(-?[\d.]+(?:[eE][-+]?\d+)?)"
    interval = re.compile(rf'intervals \[\d+\]:\s*xmin = {number}\s*xmax = {number}\s*text = "((?:[^"]|"")*)"')
    rows = interval.findall(tiers[names.index(tier)])
    return _in_order(with_context([(float(a), float(b), normalize(c)) for a, b, c in rows]), path)


def read_phn(path: Path, sample_rate: int = 16000) -> list[Phone]:
    """TIMIT: `start end phone` in samples at 16 kHz; the names are left as they are."""
    rows = []
    for row, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or not (fields[0].isdigit() and fields[1].isdigit()):
            raise UserError(f"{path} row {row}: expected `start end phone`, got {line[:60]!r}")
        rows.append((int(fields[0]) / sample_rate, int(fields[1]) / sample_rate, fields[2]))
    return _in_order(with_context(rows), path)


def with_context(rows: list[tuple[float, float, str]]) -> list[Phone]:
    """Give every phone its two neighbours on either side."""
    names = [BEYOND, BEYOND, *(name for _, _, name in rows), BEYOND, BEYOND]
    return [Phone(start, stop, tuple(names[i : i + 5])) for i, (start, stop, _) in enumerate(rows)]


def normalize(name: str) -> str:
    name = name.lower().rstrip("012")
    return "pau" if name in ("", "sp", "sil", "<eps>") else name


def _in_order(phones: list[Phone], path: Path) -> list[Phone]:
    if not phones:
        raise UserError(f"{path} holds no phones: write it again, or remove the utterance")
    end = phones[0].start
    for row, phone in enumerate(phones, 1):
        # 0.1 ms: aligners round differently on the two sides of a border
        if phone.stop < phone.start or phone.start < end - 1e-4:
            raise UserError(
                f"{path}: phone {row} ({phone.name}) starts before the one before it ends, or ends before it starts"
            )
        end = phone.stop
    return phones


def phone_at(phones: list[Phone], times: list[float]) -> list[Phone | None]:
    """The phone that holds each of the (ascending) times: start <= t < stop; None where there is none."""
    found, index = [], 0
    for time in times:
        while index < len(phones) and phones[index].stop <= time:
            index += 1
        inside = index < len(phones) and phones[index].start <= time
        found.append(phones[index] if inside else None)
    return found

"""Which photos an album holds and what each output is called: every photo once, outputs never, and nothing that the user owns is written over."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from f2i_runtime.album.album_records import Record, is_ours, read_records, recorded_outputs, stamp_of
from f2i_runtime.album.download import is_url, url_file_name
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.photo_listing import LIST_SUFFIX, PHOTO_SUFFIXES, walk_photos
from f2i_runtime.photo.writer import WRITABLE
from f2i_runtime.text_files import list_entries

_SUBSTITUTES = {".bmp": ".png"}
"""Suffix of the output of a photo whose own format is not written, where that is not ``.jpg``."""

FileId = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """One photo to do: a path or a URL, and where its output goes below the output folder."""

    location: str
    output: str

    @property
    def is_url(self) -> bool:
        """Whether it has to be fetched first."""
        return is_url(self.location)


@dataclass(frozen=True)
class AlbumPlan:
    """What an album will do."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    """One line each about outputs with another name than usual and about files that are left out."""
    failed: tuple[tuple[str, str], ...] = ()
    """(entry, reason) for every line of a list that leads to no photo."""


@dataclass(frozen=True)
class _Found:
    """A photo before its output has a name; ``problem`` says why it is none."""

    location: str
    relative: str
    problem: str = ""


def plan_album(inputs: Sequence[str], out: Path, suffix: str | None = None) -> AlbumPlan:
    """Returns what there is to do for files, folders (searched recursively, in name order), URLs, and ``.txt`` lists with one of these per line.

    A photo that is met twice, by a link or in two lists, is done once. Outputs that an album wrote are left out wherever they are met, and so is the output
    folder where it lies inside a searched folder. An output keeps the name that it has; a new one never takes the name of a file that is there already.

    Args:
        inputs: paths and URLs as the user wrote them.
        out: the output folder, which need not exist.
        suffix: of every output, such as ``.png``; None keeps the photo's own, but what cannot be written becomes ``.jpg`` (HEIC) or ``.png`` (BMP).

    Raises:
        UsageError: an input does not exist, or no photo is left.
    """
    met = list(_expand(inputs, out, (), set()))
    found, notes = _once(list(dict.fromkeys(f for f in met if not f.problem)), out)
    failed = tuple(dict.fromkeys((f.location, f.problem) for f in met if f.problem))
    if not found:
        reason = f"{failed[0][0]}: {failed[0][1]}" if failed else f"{(*notes, 'no photos')[0]}; give photos that are not outputs"
        raise UsageError(f"{', '.join(inputs)}: nothing to upscale: {reason}")
    names = _kept_names(found, out, suffix)
    kept = frozenset(names)
    names |= _new_names([f for f in found if f.location not in names], out, suffix, frozenset(map(_key, names.values())))
    for photo in found:
        name, plain = names[photo.location], output_names(photo.relative, suffix)[0]
        if name != plain and photo.location not in kept:
            notes.append(f"{photo.location}: its output is {name}, because {plain} is taken")
    return AlbumPlan(tuple(Source(f.location, names[f.location]) for f in found), tuple(notes), failed)


def output_names(relative: str, suffix: str | None) -> list[str]:
    """Returns names for the output of a photo, the usual one first, then one with the photo's own format in it: ``a/IMG_9_x2.jpg``, ``a/IMG_9_heic_x2.jpg``."""
    path = PurePosixPath(relative)
    own = path.suffix.lower()
    end = suffix or (path.suffix if own in WRITABLE else _SUBSTITUTES.get(own, ".jpg"))
    own = own if own in PHOTO_SUFFIXES else ""
    stem = path.stem if own else path.name
    marked = [f"{stem}_{own[1:]}_x2{end}"] if own else []
    return [(path.parent / name).as_posix() for name in (f"{stem}_x2{end}", *marked)]


def _expand(inputs: Sequence[str], out: Path, inside: tuple[Path, ...], read: set[Path]) -> Iterator[_Found]:
    """What ``inputs`` stand for; ``inside``: the lists that lead here, ``read``: all lists read so far."""
    for text in inputs:
        try:
            if is_url(text):
                yield _Found(text, url_file_name(text))
            elif text.lower().endswith(LIST_SUFFIX) and Path(text).is_file():
                yield from _listed(Path(text), out, inside, read)
            elif Path(text).is_dir():
                found = sorted(_walk(Path(text), out))
                if not found:
                    raise UsageError(f"it holds no photos; expected files ending in {', '.join(sorted(PHOTO_SUFFIXES))}")
                yield from (_Found(str(p.absolute()), p.relative_to(text).as_posix()) for p in found)
            elif Path(text).is_file():
                yield _Found(str(Path(text).absolute()), Path(text).name)
            else:
                raise UsageError("no such photo or folder")
        except (UsageError, ValueError) as e:
            if not inside:
                raise UsageError(f"{text}: {str(e).removeprefix(f'{text}: ')}") from e
            # A line of a list that leads nowhere ends neither the list nor the album.
            yield _Found(text, "", problem=str(e).removeprefix(f"{text}: "))


def _listed(path: Path, out: Path, inside: tuple[Path, ...], read: set[Path]) -> Iterator[_Found]:
    real = path.resolve()
    if real in inside:
        raise UsageError(
            f"the list leads back to itself ({' → '.join(p.name for p in (*inside[inside.index(real) :], real))}); take that line out"
        )
    if real in read:
        return
    read.add(real)
    entries = list_entries(path)
    if not entries:
        raise UsageError("the list is empty; expected one path or URL per line")
    yield from _expand(entries, out, (*inside, real), read)


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    """Photos below ``folder``, without what lies in the output folder where that is a folder below."""
    apart = out.resolve()
    inside = apart != folder.resolve() and folder.resolve() in apart.parents
    for path in walk_photos(folder):
        if not (inside and apart in path.resolve().parents):
            yield path


def _identity(path: str | Path) -> FileId | None:
    """What every name of one file has in common, on disks that ignore case too; None when it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _once(found: list[_Found], out: Path) -> tuple[list[_Found], list[str]]:
    """Those that are no outputs, each file under one name, which is not a link's where there is another; and notes about the rest."""
    folders = {Path(f.location).parent for f in found if not is_url(f.location)} | {
        Path(f.location).resolve().parent for f in found if not is_url(f.location)
    }
    roots = {folder for folder in folders if not any(parent in folders for parent in folder.parents)} | {out}
    outputs = {identity for root in roots for path in recorded_outputs(root) if (identity := _identity(path))}
    # A photo that is done goes by the name that it was done under, whichever of its names leads to it now.
    done = {_identity(record.source): record.source for record in read_records(out).values() if not is_url(record.source)}
    kept: dict[FileId | str, _Found] = {}
    written = twice = 0
    for photo in found:
        identity = None if is_url(photo.location) else _identity(photo.location)
        if identity in outputs:
            written += 1
        elif identity is None:
            kept[photo.location] = photo
        elif (other := kept.get(identity)) is None:
            kept[identity] = replace(photo, location=done.get(identity, photo.location))
        else:
            twice += 1
            if identity not in done and os.path.islink(other.location) and not os.path.islink(photo.location):
                kept[identity] = photo
    notes = [f"{written} files are outputs of an earlier run: left out"] if written else []
    notes += [f"{twice} names lead to photos that are done under another name"] if twice else []
    return list(kept.values()), notes


def _kept_names(found: Sequence[_Found], out: Path, suffix: str | None) -> dict[str, str]:
    """Outputs, by location, of the photos that one was written for already, though the photo was moved since."""
    records = read_records(out)
    earlier = {record.source: record for record in records.values()}
    gone = {record.stamp: record for record in records.values() if not is_url(record.source) and _identity(record.source) is None}
    names: dict[str, str] = {}
    used: set[str] = set()
    for photo in found:
        stamp = stamp_of(Path(photo.location)) if not is_url(photo.location) else (0, 0)
        record = earlier.get(photo.location) or (gone.get(stamp) if stamp != (0, 0) else None)
        if record is not None and _fits(record, photo, out, suffix) and record.output not in used:
            names[photo.location] = record.output
            used.add(record.output)
    return names


def _new_names(found: Sequence[_Found], out: Path, suffix: str | None, taken: frozenset[str]) -> dict[str, str]:
    """Outputs, by location, for photos that have none yet; ``taken``: keys of the names of others."""
    names: dict[str, str] = {}

    def differs(photo: _Found) -> bool:
        return PurePosixPath(photo.relative).suffix != PurePosixPath(output_names(photo.relative, suffix)[0]).suffix

    # A photo whose name differs from its output's in ``_x2`` alone has the first claim.
    for photo in sorted(found, key=differs):
        name = next(n for n in _candidates(photo.relative, suffix) if _key(n) not in taken and not os.path.lexists(out / n))
        names[photo.location] = name
        taken |= {_key(name)}
    return names


def _fits(record: Record, photo: _Found, out: Path, suffix: str | None) -> bool:
    """Whether the recorded output still is one for this photo, in the format asked for, and nobody else's file by now."""
    wanted = PurePosixPath(output_names(photo.relative, suffix)[0]).suffix
    return PurePosixPath(record.output).suffix == wanted and (is_ours(out, record) or not os.path.lexists(out / record.output))


def _candidates(relative: str, suffix: str | None) -> Iterator[str]:
    names = output_names(relative, suffix)
    yield from names
    path, number = PurePosixPath(names[0]), 2
    while True:
        yield (path.parent / f"{path.stem}-{number}{path.suffix}").as_posix()
        number += 1


def _key(name: str) -> str:
    """Equal for names that some disk takes for one: in upper or lower case, with accents composed or not."""
    return unicodedata.normalize("NFC", name).casefold()

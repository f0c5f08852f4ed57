"""``scale-vqa build release``: converts the authors' JSON files and images, local or on the Hub, to a release folder.

All structural problems are listed in one run, with file, row and field; known defects are kept and reported.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
from tqdm import tqdm

from dataset_script.hub_release import HubFolder, question_files
from dataset_script.image_files import Folder, FoundImages, ImageFiles, check_images, find_images
from scale_vqa_eval.audit.defects import KINDS, Defect, find_defects
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, parse_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.card import CONTROLS
from scale_vqa_eval.release_folder.write import check_out, write_release
from scale_vqa_eval.schema import QUESTION_TYPES, VIEWS, patient_of, row_id
from scale_vqa_eval.text import markdown, one_line

MADE_FROM_RELEASE: Final = frozenset({"default", "text", *CONTROLS})
OPTION_LETTERS: Final = ("A", "B", "C", "D")


def _split_file(value: str) -> tuple[str, str]:
    split, _, file = value.partition("=")
    if not re.fullmatch(r"\w+(?:\.\w+)*", split) or not file:
        raise click.BadParameter(f"expected SPLIT=FILE such as test=test.json, found {value!r}")
    return split, file


@click.command()
@click.option("--json", "files", type=_split_file, multiple=True, metavar="SPLIT=FILE", help="May be repeated.")
@click.option(
    "--images",
    metavar="ROOT",
    help="Folder or archive with the images; without it only the text config is built.",
)
@click.option(
    "--hub", "repo", metavar="ORG/NAME", help="Data set on the Hub; --json and --images are then paths in it."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of --hub.  [default: the newest commit]")
@click.option("--no-images", is_flag=True, help="With --hub: download and build only the text.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the defects as JSON here.")
def release(
    files: Sequence[tuple[str, str]],
    images: str | None,
    repo: str | None,
    revision: str | None,
    no_images: bool,
    out: Path,
    report: Path | None,
) -> None:
    """Build a release folder from the authors' JSON files.

    Images may be in folders or archives below ROOT, or anywhere in the data set; they are found by the paths in the
    rows. With --hub, the JSON files are recognised by their content and the splits by the file names. An interrupted
    download resumes.

    Known defects (rationale letters, duplicate options, null views, ...) are kept and reported by row id. Structural
    problems stop the build: all are listed, the exit code is 1, and nothing is written.
    """
    by_split = dict(files)
    if len(by_split) < len(files):
        raise click.UsageError("--json names a split twice")
    if not files and not repo:
        raise click.UsageError("give files with --json SPLIT=FILE, or a data set on the Hub with --hub ORG/NAME")
    if (revision or no_images) and not repo:
        raise click.UsageError("--revision and --no-images require --hub")
    if no_images and images:
        raise click.UsageError("--images and --no-images contradict each other")
    check_out(out)
    if repo:
        build_from_hub(HubFolder.read(repo, revision), out, by_split, images, not no_images, report)
        return
    for option, paths in (("--json", by_split.values()), ("--images", [images] if images else [])):
        for path in paths:
            if not (Path(path).is_file() or (option == "--images" and Path(path).is_dir())):
                raise click.BadParameter(f"no file at {path!r}", param_hint=option)
    source = None if images is None else Folder(Path(images))
    build_release({split: Path(file) for split, file in by_split.items()}, source, out, named=True, report=report)


def build_from_hub(
    hub: HubFolder,
    out: Path,
    named: Mapping[str, str] | None = None,
    images: str | None = None,
    with_images: bool = True,
    report: Path | None = None,
) -> None:
    """Builds a release folder from a data set on the Hub in the authors' layout.

    Args:
        hub: the data set.
        out: the release folder.
        named: split -> path of its JSON file in the data set, or None to search for the files.
        images: folder or archive of the data set with the images, or None to search everywhere.
        with_images: download the images and build ``default``, not only ``text``.
        report: file for the defects.

    Raises:
        InputError: as in ``build_release``, or if the data set cannot be read or has no such files.
    """
    if hub.is_release_folder and not named:
        hint = f"load_dataset({hub.repo!r}) reads it, or scale-vqa prepare --data {hub.repo}"
        raise InputError(Problem(hub.repo, "a data set in the authors' layout", "a release folder", hint))
    files = question_files(hub, named or {})
    source = (hub if images is None else hub.below(images)) if with_images else None
    hub.fetch(files.values())
    origin = f"Downloaded from the data set {markdown(hub.repo)} on the Hub at revision `{hub.commit}`: "
    origin += ", ".join(f"{split} from {markdown(path)}" for split, path in files.items())
    local = {split: hub.local(path) for split, path in files.items()}
    build_release(local, source, out, images is not None, report, origin)


def build_release(
    files: Mapping[str, Path],
    source: ImageFiles | None,
    out: Path,
    named: bool,
    report: Path | None = None,
    origin: str = "",
) -> None:
    """Builds a release folder; prints a summary, and the defects on standard error.

    Args:
        files: split -> JSON file.
        source: the images, or None for only the text config.
        out: the release folder.
        named: whether the user gave ``source`` as the image root.
        report: file for the defects.
        origin: origin of the files, for the card.

    Raises:
        InputError: with every structural problem; nothing is written.
    """
    found = read_release(files)
    problems, images = list(found.problems), None
    if problems and isinstance(source, HubFolder):
        raise InputError(problems)  # before downloading the images
    if source is not None:
        names = list(dict.fromkeys(name for _, name in found.image_names))
        try:
            images = find_images(source, names, out.absolute().parent, named)
        except InputError as error:
            raise InputError([*problems, *error.problems]) from error
        if isinstance(source, HubFolder):
            source.fetch(file.archive or file.path for file in images.files.values() if not isinstance(file, str))
        _report_missing(found, images)
        problems += check_images(images, found.image_names)
        if origin:
            origin += f"; images from {markdown(', '.join(images.places[:8]))}"
            origin += f" and {len(images.places) - 8} more places" * (len(images.places) > 8)
    if problems:
        raise InputError(problems)
    questions = found.questions
    defects = find_defects(questions)
    if images is not None:
        without = (question for question in questions if not question.images)
        defects += [Defect(question.id, "null-view", f"no image for {', '.join(VIEWS)}") for question in without]
    _report(defects, len(questions))
    splits = {split: [q for q in questions if q.split == split] for split in files}
    tables: dict[str, dict[str, Iterator[dict[str, Any]]]] = {}
    if images is not None:
        tables["default"] = {split: _rows(members, images) for split, members in splits.items()}
    else:
        click.echo("no images: the folder gets the text config only, without image columns", err=True)
    tables["text"] = {split: _rows(members, None) for split, members in splits.items()}
    as_json = json.dumps([asdict(defect) for defect in defects], indent=1, ensure_ascii=False) + "\n"
    note = _note(questions, defects, images is not None, origin)
    defect_files = {f"{config}/defects.json": as_json.encode() for config in tables}
    write_release(out, tables, dict.fromkeys(tables, note), files=defect_files, drop=MADE_FROM_RELEASE)
    if report is not None:
        atomic_write(report, as_json, "name another --report")
    sizes = ", ".join(f"{split} {len(members)}" for split, members in splits.items())
    click.echo(f"{out}: {' and '.join(tables)} with {sizes} questions, {len(defects)} known defects reported")


def _report_missing(found: AuthorsRelease, images: FoundImages) -> None:
    """Lists the number of missing images by slide on standard error."""
    slides = {name: question.slide for question in found.questions for _, name in question.images}
    if missing := [name for name, file in images.files.items() if isinstance(file, str)]:
        by_slide = Counter(str(slides.get(name, name.split("/")[0])) for name in missing)
        listed = ", ".join(f"{one_line(slide)} {count}" for slide, count in by_slide.most_common(20))
        more = f", and {len(by_slide) - 20} more slides" if len(by_slide) > 20 else ""
        click.echo(f"missing: {len(missing)} of {len(images.files)} images, by slide: {listed}{more}", err=True)


def _rows(questions: Sequence[Question], images: FoundImages | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split with unchanged image files, one in memory at a time."""
    for question in tqdm(questions, "rows written", disable=None if images else True):
        row = question.as_row("Scale-VQA release (arXiv:2606.17412)")
        for view, name in question.images if images is not None else ():
            image = images.files[name]
            assert not isinstance(image, str), "checked before"
            with image.open() as file:
                row[view] = {"bytes": file.read(), "path": name}
        yield row


def _report(defects: Sequence[Defect], rows: int) -> None:
    """Lists the defects on standard error."""
    for defect in defects:
        click.echo(f"defect: {defect.kind}: {defect.id}: {defect.detail}", err=True)
    counts = Counter(defect.kind for defect in defects)
    listed = "; ".join(f"{counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind])
    click.echo(f"{rows} rows kept, defects: {listed or 'none'}", err=True)


def _note(questions: Sequence[Question], defects: Sequence[Defect], with_images: bool, origin: str) -> str:
    """Returns the paragraph of the card: the origin of the rows and their known defects."""
    slides, patients = ({getattr(question, name) for question in questions} for name in ("slide", "patient"))
    counts = Counter(defect.kind for defect in defects)
    lines = [
        "The questions and splits as the authors of Scale-VQA released them (arXiv:2606.17412), unchanged:",
        f"{len(questions)} questions on {len(slides)} slides of {len(patients)} patients. The patient of a TCGA slide",
        "is the first 12 characters of its barcode; every other slide is assumed to be a separate patient.",
        "The released files have no licence; this folder adds none.",
        *([f"{origin}."] if origin else []),
        "",
    ]
    if not with_images:
        lines += ["Built without image files, so there is no config with images.", ""]
    if counts:
        lines += ["Known defects, listed by row id in `defects.json` beside the Parquet files:", ""]
        lines += [f"- {counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind]]
    else:
        lines += ["No known defects were found."]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class AuthorsRelease:
    """The content of the files of a release.

    Attributes:
        questions: the valid rows, in file order; ``images`` of each has the views that are not null.
        image_names: location (for messages) and path of every image in the rows, invalid rows included.
        problems: all structural problems.
    """

    questions: list[Question]
    image_names: list[tuple[str, str]]
    problems: list[Problem]


def read_release(files: Mapping[str, Path]) -> AuthorsRelease:
    """Reads the JSON files of a release (split -> file); collects problems instead of raising them."""
    release = AuthorsRelease([], [], [])
    first: dict[str, str] = {}
    for split, path in files.items():
        for number, raw in enumerate(_load(path, release.problems), 1):
            location = f"{path}, row {number}"
            checker = _RowChecker(location)
            question = checker.question(raw, split)
            if question is not None and question.id in first:
                expected = "a unique id (wsi_name::path_id::question_type)"
                found = f"{preview(question.id)}, which is {first[question.id]}"
                checker.problem(expected, found, "rename or remove one row")
            release.problems.extend(checker.problems)
            release.image_names.extend((checker.location, name) for _, name in checker.images)
            if question is not None:
                first.setdefault(question.id, location)
                release.questions.append(question)
    return release


def _load(path: Path, problems: list[Problem]) -> list[object]:
    """Returns the rows of a JSON list, or an empty list and a problem if the file cannot be read."""
    try:
        data = parse_json(path.read_bytes().decode("utf-8-sig"), str(path), object_pairs_hook=_repeated_keys_marked)
        if isinstance(data, list) and data:
            return data
        found = "an empty list" if data == [] else type(data).__name__
        problems.append(Problem(str(path), "a JSON list of rows", found, "use the released file of one split"))
    except InputError as error:
        problems.extend(error.problems)
    except UnicodeDecodeError as error:
        problems.append(Problem(f"{path}, byte {error.start}", "UTF-8", error.reason, "save the file as UTF-8"))
    except OSError as error:
        problems.append(Problem(str(path), "a JSON file", preview(error), "fix the file"))
    return []


class _RepeatedKeys(dict[str, Any]):
    """A JSON object with duplicate keys, which are listed in ``repeated``."""

    repeated: tuple[str, ...] = ()


def _repeated_keys_marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = _RepeatedKeys(found)
    keys = Counter(key for key, _ in pairs)
    marked.repeated = tuple(sorted(key for key, count in keys.items() if count > 1))
    return marked


class _RowChecker:
    """Validates a row and collects its problems."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.problems: list[Problem] = []
        self.images: tuple[tuple[str, str], ...] = ()

    def problem(self, expected: str, found: str, hint: str) -> None:
        self.problems.append(Problem(self.location, expected, found, hint))

    def question(self, raw: object, split: str) -> Question | None:
        """Returns the question of a row, or None if a problem was found."""
        row = self._object(raw, "the row")
        if row is None:
            return None
        extra = self._object(row.get("extra_info"), "extra_info") or {}
        slide, path_id = (self._text(extra, name) for name in ("wsi_name", "path_id"))
        kind = extra.get("question_type")
        if not isinstance(kind, str) or kind not in QUESTION_TYPES:
            expected = f"extra_info.question_type in {', '.join(QUESTION_TYPES)}"
            self.problem(expected, preview(kind), "name the type")
            kind = None
        identity = row_id(slide, path_id, kind) if slide and path_id and kind else None
        if identity:
            self.location += f" ({identity})"
        stem = self._text(row, "question")
        options = self._options(row.get("options"))
        answer = row.get("answer")
        if answer not in OPTION_LETTERS:
            self.problem("answer in A, B, C, D", preview(answer), "name the letter of one option")
        rationale = None if row.get("rationale") is None else self._text(row, "rationale")
        self.images = self._images(row.get("image_path"))
        if self.problems or identity is None or kind is None or stem is None or options is None:
            return None
        return Question(
            id=identity,
            question=stem,
            options=options,
            answer=OPTION_LETTERS.index(str(answer)),
            dimension=QUESTION_TYPES[kind],
            slide=slide,
            patient=patient_of(str(slide)),
            path_id=path_id,
            rationale=rationale,
            split=split,
            images=self.images,
        )

    def _object(self, value: object, name: str) -> Mapping[str, Any] | None:
        if isinstance(value, _RepeatedKeys):
            self.problem(f"each key of {name} once", f"twice: {', '.join(value.repeated)}", "remove one of the two")
        if not isinstance(value, dict):
            self.problem(f"{name} to be an object", preview(value), "follow the released format")
            return None
        return value

    def _text(self, row: Mapping[str, Any], name: str) -> str | None:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            self.problem(f"{name}: a text that is not empty", preview(value), "write the text")
            return None
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.problem(f"{name}: whole Unicode characters", preview(value), "remove the lone surrogate")
            return None
        return value

    def _options(self, raw: object) -> tuple[str, ...] | None:
        options = self._object(raw, "options")
        if options is None:
            return None
        missing = [letter for letter in OPTION_LETTERS if letter not in options]
        more = [preview(letter) for letter in options if letter not in OPTION_LETTERS]
        if missing:
            self.problem("options A, B, C, D", f"no {', '.join(missing)}", "add the missing options")
        if more:
            self.problem("options A, B, C, D and no other", f"also {', '.join(more)}", "remove the others")
        texts = [self._text(options, letter) for letter in OPTION_LETTERS if letter in options]
        return None if missing or more or None in texts else tuple(text for text in texts if text)

    def _images(self, raw: object) -> tuple[tuple[str, str], ...]:
        paths = self._object(raw, "image_path")
        if paths is None:
            return ()
        strange = [preview(name) for name in paths if name not in VIEWS]
        if strange:
            self.problem(f"views {', '.join(VIEWS)}", ", ".join(strange), "name the view as the release does")
        for view in VIEWS:
            if paths.get(view) is not None:
                self._text(paths, view)
        return tuple((view, paths[view]) for view in VIEWS if isinstance(paths.get(view), str))

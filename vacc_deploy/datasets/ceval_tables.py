"""Where the tables of C-Eval are: in the published zip, in a folder, or one file.

A table holds the questions of one subject. Its split, ``dev`` or ``val``, and its subject stand in
its name or in the folders around it. The ``test`` tables have no answers and are never opened.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from vacc_deploy.bounds import (
    CEVAL_ARCHIVE_BYTES,
    CEVAL_DIRECTORY_BYTES,
    CEVAL_FILES,
    CEVAL_TABLE_BYTES,
)
from vacc_deploy.datasets.files import unreadable
from vacc_deploy.errors import REASON_SHOWN, CalibrationError, shorten
from vacc_deploy.links import explain_outside

# Subjects as the archive names them, and as the prompt does.
_SUBJECTS = """
accountant 注册会计师, advanced_mathematics 高等数学, art_studies 艺术学, basic_medicine 基础医学,
business_administration 工商管理, chinese_language_and_literature 中国语言文学,
civil_servant 公务员, clinical_medicine 临床医学, college_chemistry 大学化学,
college_economics 大学经济学, college_physics 大学物理, college_programming 大学编程,
computer_architecture 计算机组成, computer_network 计算机网络, discrete_mathematics 离散数学,
education_science 教育学, electrical_engineer 注册电气工程师,
environmental_impact_assessment_engineer 环境影响评价工程师, fire_engineer 注册消防工程师,
high_school_biology 高中生物, high_school_chemistry 高中化学, high_school_chinese 高中语文,
high_school_geography 高中地理, high_school_history 高中历史, high_school_mathematics 高中数学,
high_school_physics 高中物理, high_school_politics 高中政治,
ideological_and_moral_cultivation 思想道德修养与法律基础, law 法学,
legal_professional 法律职业资格, logic 逻辑学,
mao_zedong_thought 毛泽东思想和中国特色社会主义理论体系概论, marxism 马克思主义基本原理,
metrology_engineer 注册计量师, middle_school_biology 初中生物, middle_school_chemistry 初中化学,
middle_school_geography 初中地理, middle_school_history 初中历史,
middle_school_mathematics 初中数学, middle_school_physics 初中物理,
middle_school_politics 初中政治, modern_chinese_history 近代史纲要, operating_system 操作系统,
physician 医师资格, plant_protection 植物保护, probability_and_statistics 概率统计,
professional_tour_guide 导游资格, sports_science 体育学, tax_accountant 税务师,
teacher_qualification 教师资格, urban_and_rural_planner 注册城乡规划师,
veterinary_medicine 兽医学
"""
SUBJECTS = dict(pair.split() for pair in _SUBJECTS.split(","))
CSV, PARQUET = "csv", "parquet"
# What the zipfile module raises on damaged, hostile or encrypted archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    MemoryError,
    OSError,  # an offset that no file has
    NotImplementedError,  # an unknown compression or version
    RuntimeError,  # an encrypted member
    ValueError,  # a name that is not UTF-8, an offset before the file
)
# The end of a table's path in lower case: val/law_val.csv of the archive; law/val-00000-of-00001 of
# the hub; law/val/0000 of the hub's conversion.
_SPLITS = r"(?P<split>dev|val|validation|test)"
_PART = r"(?P<part>-\d{5}-of-\d{5})?"
_NAMES = tuple(
    re.compile(pattern + r"\.(?P<form>csv|parquet)$")
    for pattern in (
        rf"(?:^|/)(?P<subject>[a-z_]+)[_-]{_SPLITS}{_PART}",
        rf"(?:^|/)(?P<subject>[a-z_]+)/{_SPLITS}{_PART}",
        rf"(?:^|/)(?P<subject>[a-z_]+)/{_SPLITS}/(?P<part>\d{{4}})",
    )
)


class Table(NamedTuple):
    """A table of C-Eval; they are read in the order of their first fields."""

    split: str
    subject: str
    part: str  # of a table in several files
    name: str  # in the archive or folder
    form: str  # CSV or PARQUET


def find_table(name: str) -> Table | None:
    """Return the table that a path belongs to, its upper and lower case ignored."""
    # Archives made on Windows may have backslashes; macOS adds a shadow of every file.
    path = name.replace("\\", "/").lower()
    if "__macosx" in PurePosixPath(path).parts:
        return None
    for pattern in _NAMES:
        if match := pattern.search(path):
            split = "val" if match["split"] == "validation" else match["split"]
            return Table(split, match["subject"], match["part"] or "", name, match["form"])
    return None


def choose_tables(names: Iterable[tuple[str, str]], path: Path) -> list[Table]:
    """Return the dev and val tables among the files of an archive or folder, in their order.

    Args:
        names: of each file the path that tells its table, and its name there.
        path: the archive or folder, for errors.

    Raises:
        CalibrationError: there is none, one of no known subject, or one twice.
    """
    chosen: dict[tuple[str, str], dict[str, Table]] = {}
    for telling, name in names:
        table = find_table(telling)
        if table is None or table.split == "test":
            continue
        where = f"{path}, {name!r:.80}"
        if table.subject not in SUBJECTS:
            raise CalibrationError(
                f"{where}: {table.subject!r:.80} is not one of the {len(SUBJECTS)} subjects of "
                "C-Eval. Remove this file or use the published archive."
            )
        parts = chosen.setdefault(table[:2], {})
        other = parts.get(table.part) or next(iter(parts.values()), table)
        # Files that are numbered in another way, or not at all, hold the same questions once more.
        if table.part in parts or len(other.part) != len(table.part):
            raise CalibrationError(
                f"{where} gives the {table.split} questions of {table.subject} a second time. "
                f"Remove it, or {other.name!r:.80}."
            )
        parts[table.part] = table._replace(name=name)
    if not chosen:
        raise CalibrationError(
            f"{path} has no table such as dev/accountant_dev.csv or val/accountant_val.csv. "
            "Expected ceval-exam.zip of the C-Eval data set, or what it holds."
        )
    return sorted(table for parts in chosen.values() for table in parts.values())


# ---- the archive -------------------------------------------------------------------------------


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, list[Table]]]:
    """Open an archive and choose its tables, checked against the limits.

    Raises:
        CalibrationError: it is no zip, or too large; see ``choose_tables``.
    """
    expected, num_bytes = "expected ceval-exam.zip of the C-Eval data set", path.stat().st_size
    if num_bytes > CEVAL_ARCHIVE_BYTES:
        raise CalibrationError(
            f"{path} holds {num_bytes:,} bytes, {expected}, which is far smaller. Check the path."
        )
    with _ArchiveFile(path) as file:
        try:
            archive = zipfile.ZipFile(cast(IO[bytes], file))
        except _ZIP_ERRORS as err:
            raise CalibrationError(
                f"{path} is not a readable zip archive: {shorten(err, REASON_SHOWN)}; {expected}. "
                "Download it again."
            ) from err
        members = archive.infolist()
        if len(members) > CEVAL_FILES:
            raise CalibrationError(
                f"{path} has {len(members):,} members, expected at most {CEVAL_FILES:,}: this is "
                "not ceval-exam.zip. Check the path."
            )
        names = [member.filename for member in members if member.filename.lower().endswith(CSV)]
        tables = choose_tables(zip(names, names, strict=True), path)
        for table in tables:
            _check_member(archive.getinfo(table.name), path)
        yield archive, tables


class _ArchiveFile(io.FileIO):
    """A file that gives no more at once than the largest table.

    ``zipfile`` reads the whole list of members before it can be asked how many there are.
    """

    limit = CEVAL_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        # Without a size it reads the end of the file, with the comment of the archive.
        if size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"{size:,} bytes are to be read at once")
        return super().read(-1 if size is None else size) or b""


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a member that states too much, or whose packing has no bound when it is unpacked."""
    where = f"{path}, member {member.filename!r:.80}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CalibrationError(
            f"{where} is packed by the method {member.compress_type}, expected deflate (8) or none "
            "(0). Use the published archive."
        )
    if member.file_size > CEVAL_TABLE_BYTES:
        raise CalibrationError(
            f"{where} declares {member.file_size:,} bytes, expected at most "
            f"{CEVAL_TABLE_BYTES:,}. Use the published archive."
        )


def read_member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """Return the bytes of a member.

    Raises:
        CalibrationError: it is too large, damaged or encrypted.
    """
    try:
        with archive.open(name) as file:
            # The declared size may be false, so the limit holds here too.
            # In pieces: the archive's own file gives no more at once.
            pieces = []
            while piece := file.read(1 << 16):
                pieces.append(piece)
                if len(pieces) << 16 > CEVAL_TABLE_BYTES + (1 << 16):
                    break
    except _ZIP_ERRORS as err:
        reason = shorten(err, REASON_SHOWN)
        raise CalibrationError(f"{where} cannot be read: {reason}. Download it again.") from err
    return check_size(b"".join(pieces), where)


def check_size(data: bytes, where: str) -> bytes:
    """Return the bytes of a table unless they are too many."""
    check_num_bytes(len(data), where)
    return data


def check_num_bytes(num_bytes: int, where: str) -> None:
    """Refuse a table of so many bytes, unpacked, if they are too many."""
    if num_bytes > CEVAL_TABLE_BYTES:
        raise CalibrationError(
            f"{where} holds more than {CEVAL_TABLE_BYTES:,} bytes. Use the published archive."
        )


# ---- a folder ----------------------------------------------------------------------------------


def list_tables(folder: Path) -> list[Table]:
    """Return the tables below a folder; links to folders are not followed.

    Raises:
        CalibrationError: the folder holds too much, or a table is a link that leads out of it; see
            ``choose_tables``.
    """
    tables = choose_tables(
        ((name_with_folders(folder / name), name) for name in _walk(folder)), folder
    )
    num_bytes = 0
    for table in tables:
        path = folder / table.name
        if outside := explain_outside(path, folder):
            raise CalibrationError(outside)
        if not path.is_file():
            raise CalibrationError(f"{path} is not an ordinary file. Remove it or copy it again.")
        num_bytes += path.stat().st_size
        if num_bytes > CEVAL_ARCHIVE_BYTES:
            raise CalibrationError(
                f"The tables of {folder} hold more than {CEVAL_ARCHIVE_BYTES:,} bytes, far more "
                "than those of C-Eval. Check the path."
            )
    return tables


def name_with_folders(path: Path) -> str:
    """Return the last three names of a path: they tell of which table a file is."""
    # Links are not resolved: in the hub's cache they lead to files that are named by a hash.
    return "/".join(Path(os.path.abspath(path)).parts[-3:])


def _walk(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder, from it on."""
    count = 0
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        count += len(folders) + len(names)
        if count > CEVAL_FILES:
            raise CalibrationError(
                f"{folder} holds more than {CEVAL_FILES:,} files and folders: this is not the "
                "unpacked C-Eval archive. Check the path."
            )
        inner = Path(place).relative_to(folder)
        yield from ((inner / name).as_posix() for name in sorted(names) if name[:1] != ".")


def _raise(err: OSError) -> None:
    raise unreadable(Path(err.filename), err) from err

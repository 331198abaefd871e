"""C-Eval: the published zip to conversations.

Reads the ``dev`` and ``val`` questions; the ``test`` questions have no answers and are never
touched. Nothing is unpacked to disk. Prompt form and subject names: C-Eval, arXiv 2305.08322.
"""

from __future__ import annotations

import csv
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from vacc_deploy.datasets.files import Document, unreadable
from vacc_deploy.errors import CalibrationError

MAX_ARCHIVE_BYTES = 64 << 20  # the published file holds 1.5 MB
MAX_MEMBERS = 4096  # it has 159
MAX_MEMBER_BYTES = 8 << 20  # its largest holds 172 kB
CHOICES = ("A", "B", "C", "D")
COLUMNS = ("question", *CHOICES, "answer")
# The \1: the split names the folder and ends the file's name, as in dev/law_dev.csv.
_MEMBER = re.compile(r"(?:^|/)(dev|val)/([a-z_]+)_\1\.csv$")
# What the zipfile module raises on damaged, hostile or encrypted archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # an unknown compression or version
    RuntimeError,  # an encrypted member
    ValueError,  # a name that is not UTF-8, an offset before the file
)
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


def build_conversation(subject: str, row: Mapping[str, str]) -> Document:
    """Return one question of ``COLUMNS`` as a user turn in the published form, and its answer."""
    choices = "\n".join(f"{choice}. {row[choice]}" for choice in CHOICES)
    prompt = (
        f"以下是中国关于{SUBJECTS[subject]}考试的单项选择题，请选出其中的正确答案。\n\n"
        f"{row['question']}\n{choices}\n答案："
    )
    # Only the dev questions have explanations.
    explanation = row.get("explanation", "").strip()
    answer = f"{row['answer']}\n{explanation}" if explanation else row["answer"]
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def read_ceval(path: Path) -> Generator[Document, None, None]:
    """Yield the ``dev`` and ``val`` questions of ``ceval-exam.zip``, in the order of their names.

    Raises:
        CalibrationError: not a zip archive, damaged, over the size limits, or not C-Eval inside.
    """
    try:
        with _open_archive(path) as archive:
            for subject, member in _choose_members(archive, path):
                yield from _read_member(archive, member, subject, path)
    except OSError as err:
        raise unreadable(path, err) from err


def _open_archive(path: Path) -> zipfile.ZipFile:
    expected, num_bytes = "expected ceval-exam.zip of the C-Eval data set", path.stat().st_size
    if num_bytes > MAX_ARCHIVE_BYTES:
        raise CalibrationError(
            f"{path} holds {num_bytes:,} bytes, {expected}, which is far smaller. Check the path."
        )
    try:
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS as err:
        raise CalibrationError(
            f"{path} is not a readable zip archive: {err}; {expected}. Download it again."
        ) from err


def _choose_members(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return (subject, member) of every dev and val table, checked against the limits."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise CalibrationError(
            f"{path} has {len(members):,} members, expected at most {MAX_MEMBERS:,}: this is not "
            "ceval-exam.zip. Check the path."
        )
    chosen: dict[tuple[str, str], zipfile.ZipInfo] = {}
    for member in members:
        match = _MEMBER.search(member.filename)
        if match is None:
            continue
        split, subject = match.groups()
        where = f"{path}, member {member.filename!r}"
        if subject not in SUBJECTS:
            raise CalibrationError(
                f"{where}: {subject!r} is not one of the {len(SUBJECTS)} subjects of C-Eval. "
                "Remove this member or use the published archive."
            )
        if member.file_size > MAX_MEMBER_BYTES:
            raise CalibrationError(
                f"{where} declares {member.file_size:,} bytes, expected at most "
                f"{MAX_MEMBER_BYTES:,}. Use the published archive."
            )
        if (split, subject) in chosen:
            raise CalibrationError(
                f"{where} gives the {split} questions of {subject} a second time. Use the "
                "published archive."
            )
        chosen[split, subject] = member
    if not chosen:
        raise CalibrationError(
            f"{path} has no member such as dev/accountant_dev.csv or val/accountant_val.csv. "
            "Expected ceval-exam.zip of the C-Eval data set."
        )
    return [(subject, chosen[split, subject]) for split, subject in sorted(chosen)]


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, subject: str, path: Path
) -> Iterator[Document]:
    where = f"{path}, member {member.filename!r}"
    try:
        with archive.open(member) as file:
            # The declared size may be false, so the limit holds here too.
            data = file.read(MAX_MEMBER_BYTES + 1)
    except _ZIP_ERRORS as err:
        raise CalibrationError(f"{where} cannot be read: {err}. Download it again.") from err
    if len(data) > MAX_MEMBER_BYTES:
        raise CalibrationError(f"{where} holds more than {MAX_MEMBER_BYTES:,} bytes.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise CalibrationError(
            f"{where} is not UTF-8: {err}. Use the published archive, not a converted one."
        ) from err
    # newline="" leaves bare line ends inside quoted fields to the csv module.
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise CalibrationError(
                f"{where} lacks the columns {', '.join(missing)}: got {', '.join(header)[:200]!r}, "
                "expected id, question, A, B, C, D, answer and maybe explanation."
            )
        for fields in reader:
            if fields:
                row = _check_row(header, fields, f"{where}, line {reader.line_num}")
                yield build_conversation(subject, row)
    except csv.Error as err:
        raise CalibrationError(
            f"{where}, line {reader.line_num} is not readable CSV: {err}. Download it again."
        ) from err


def _check_row(header: list[str], fields: list[str], where: str) -> dict[str, str]:
    if len(fields) != len(header):
        raise CalibrationError(
            f"{where} has {len(fields)} fields, expected {len(header)} as in the header. Download "
            "the archive again."
        )
    row = dict(zip(header, fields, strict=True))
    row["answer"] = row["answer"].strip()
    if row["answer"] not in CHOICES:
        raise CalibrationError(
            f"{where}: the answer is {row['answer'][:40]!r}, expected A, B, C or D. Use the "
            "published archive."
        )
    return row

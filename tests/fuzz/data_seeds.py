"""Valid calibration files of every kind, packed and not."""

import gzip
import io
import zipfile

from seed_forms import dump, lines

_TURNS = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]
CHATS = (
    {"messages": _TURNS},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."},
    {"question": "a", "answer": "b", "reasoning_content": "c"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, _TURNS[1]]},
    {"text": "Some text."},
)


def ceval_table(count: int) -> bytes:
    rows = "".join(f'{n},"Which, {n}?",a,b,"c ""d""",e,B,Why\r\n' for n in range(count))
    return f"id,question,A,B,C,D,answer,explanation\r\n{rows}".encode()


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("dev/accountant_dev.csv", "val/law_val.csv", "test/law_test.csv"):
            file.writestr(zipfile.ZipInfo(name), ceval_table(3))
    return packed.getvalue()


def parquet(rows: list[dict], **options) -> bytes:
    import pyarrow
    import pyarrow.parquet

    packed = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), packed, **options)
    return packed.getvalue().to_pybytes()


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def seeds() -> dict[str, list[bytes]]:
    c4 = lines(*({"text": f"Text {n}.", "url": "https://example.org"} for n in range(12)))
    alpaca = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(12)]
    trace = "<\uff5cUser\uff5c>Who?<\uff5cAssistant\uff5c><think>\na\n</think>\n\nb"
    begin, end = (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
    japanese = "\u65e5\u672c ".encode() * 40
    pairs = parquet([{"question": "a", "answer": "b"}] * 20, compression="gzip")
    return {
        "c4": [c4, gzip.compress(c4, mtime=0), zstd(c4), parquet([{"text": "a"}] * 3)],
        "alpaca": [dump(alpaca), lines(*alpaca), gzip.compress(dump(alpaca), mtime=0)],
        "chat": [lines(*CHATS), dump(CHATS), zstd(lines(*CHATS))],
        "text": [b"Some text.\n\nMore, and so on.\n", japanese, gzip.compress(b"a b\n", mtime=0)],
        "traces": [
            f"{trace}{end}".encode() * 3,
            f"{begin}Be brief.{trace}{end}{begin}{trace}".encode(),
        ],
        "ceval_csv": [ceval_table(12), gzip.compress(ceval_table(2), mtime=0)],
        "ceval_archive": [archive()],
        "parquet": [parquet(list(CHATS[:1]) * 4), pairs],
        "source_option": [
            b"text=DIR/a.txt:2",
            b"c4=a.json.gz",
            b"alpaca=DIR/a.txt:0.5",
            b"DIR/a.txt",
        ],
    }

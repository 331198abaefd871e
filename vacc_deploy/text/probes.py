"""The texts on which two readings of a tokenizer are compared. Data only.

Each is short and of another kind, so that the name of one that differs says what is wrong: where
words are split, how white space is kept, which bytes a letter has, which tokens count as special.
"""

from __future__ import annotations

# Name and text. All are in the composed form of Unicode (NFC), but the one named for it.
PROBES: tuple[tuple[str, str], ...] = (
    ("English", "The quick brown fox doesn't jump over lazy dogs; it's what they've said."),
    ("Chinese", "深度学习模型的量化：把权重变成整数，然后在加速卡上运行。"),
    (
        "code",
        "def add(a, b):\n    return a + b  # sum\n\nfor i in range(10):\n\tprint(f'{i:>3}')\n",
    ),
    ("digits", "3.14159 1,234,567 2025-01-20 0x7f 10^-6 ½ ²"),
    ("emoji", "👍🏽 👩‍👩‍👧 🇨🇳 → ✓ ∑ √2"),
    ("white space", "  two  spaces\t\ttabs\n\n\n   three lines \r\n end "),
    ("letters of other scripts", "naïve café Größe Привет мир こんにちは 안녕 שלום नमस्ते"),
    ("composed letters", "cafe\u0301 A\u030a \ufb01"),
    ("thinking", "<think>\nOkay, 2 + 2 = 4.\n</think>\n\nThe answer is \\boxed{4}."),
    ("markup", '<b>bold</b> [link](http://a.b/?c=d&e=f) {"key": [1, null]} | x | y |'),
)
# Rendered by the chat template with the mark after which the model answers.
CHAT: tuple[dict[str, str], ...] = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."},
    {"role": "user", "content": "谢谢！ And 3 + 3?"},
)

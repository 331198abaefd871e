"""A rule of the checks, and a problem: the sentence of a message that knows its rule.

Validators return problems, whoever needs a sound input raises them, and ``check`` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Rule:
    """What must hold, and what follows where it does not.

    Attributes:
        code: stable over versions, for example ``VD203``; a code is never used for something else.
        severity: ``error`` (the compilation or the served model would be wrong), ``warning`` (it
            may be wrong) or ``note`` (worth knowing).
        title: what is wrong, a few words.
        why: why it matters, a sentence.
        fix: what to do, a sentence.
        is_fixable: whether ``check --fix`` mends it.
    """

    code: str
    severity: str
    title: str
    why: str
    fix: str
    is_fixable: bool = False

    def broken(
        self,
        text: str,
        *,
        where: str = "",
        got: object = "",
        expected: object = "",
        line: int = 0,
    ) -> Problem:
        """Return the problem of one place where this rule is broken.

        Args:
            text: the sentence of the message, without a full stop; names the place.
            where: the file, and in it the key or the tensor, for a table.
            got, expected: what is there, and what should be, as far as the two can be said apart.
            line: in the file, from 1; 0 where it is not known.
        """
        problem = Problem(text)
        problem.rule, problem.where, problem.line = self, where, line
        problem.got, problem.expected = str(got), str(expected)
        return problem


class Problem(str):
    """A sentence on one place where a rule is broken; messages use it as the text that it is.

    Attributes:
        rule: which rule.
        where, got, expected, line: see ``Rule.broken``.
    """

    rule: Rule
    where: str
    line: int
    got: str
    expected: str

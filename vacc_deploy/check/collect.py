"""Collect problems from validators that return them, and from those that raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vacc_deploy.errors import UnsupportedModelError, VaccDeployError
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.problems.configuration import UNSUPPORTED
from vacc_deploy.problems.files import UNREADABLE
from vacc_deploy.problems.problem import Problem, Rule


class Collected(list[Problem]):
    """The problems so far."""

    def add(
        self,
        find: Callable[[], Iterable[Problem]],
        *,
        otherwise: Rule = UNREADABLE,
        where: str = "",
    ) -> None:
        """Add what ``find`` returns, or what the error says in which it ends.

        Args:
            find: a validator.
            otherwise: the rule of an error that lists no problems.
            where: the file that it is about.
        """
        try:
            self.extend(find())
        except VaccDeployError as err:
            self.extend(as_problems(err, otherwise, where))
        except OSError as err:  # a directory that is closed to us, or a disk that fails
            if not err.filename:
                raise
            text = explain_unreadable(Path(err.filename), err).removesuffix(".")
            self.append(otherwise.broken(text, where=where))


def as_problems(err: VaccDeployError, rule: Rule = UNREADABLE, where: str = "") -> list[Problem]:
    """Return the problems that an error lists, or the whole of it as one of ``rule``.

    An unsupported model is one of its own rule, unless ``rule`` says which file is at fault.
    """
    listed = [problem for problem in err.problems if isinstance(problem, Problem)]
    if listed:
        return listed
    if isinstance(err, UnsupportedModelError) and rule is UNREADABLE:
        rule = UNSUPPORTED
    return [rule.broken(str(err), where=where)]

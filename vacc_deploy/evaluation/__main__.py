"""``python -m vacc_deploy.evaluation``: lm-evaluation-harness, with the model ``vacc``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the harness's own command."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as err:
        sys.exit(
            f"lm-evaluation-harness cannot be imported ({err}). Run: pip install "
            "'vacc-deploy[harness]'"
        )
    from vacc_deploy.errors import VaccDeployError
    from vacc_deploy.evaluation import harness  # noqa: F401 - registers the model

    try:
        cli_evaluate()
    except VaccDeployError as err:
        sys.stderr.write(f"Error: {err}\n")
        sys.exit(err.exit_code)


if __name__ == "__main__":
    main()

"""Writes ``corpus/``: a few small valid inputs for each target, all made here.

    python tests/fuzz/make_corpus.py

Needs the packages of the extra ``test``.
"""

import shutil

import data_seeds
import output_seeds
import text_seeds
import weight_seeds
from targets import CORPUS


def main() -> None:
    shutil.rmtree(CORPUS, ignore_errors=True)
    for module in (weight_seeds, text_seeds, data_seeds, output_seeds):
        for name, inputs in module.seeds().items():
            (CORPUS / name).mkdir(parents=True)
            for number, data in enumerate(inputs, 1):
                (CORPUS / name / str(number)).write_bytes(data)


if __name__ == "__main__":
    main()
